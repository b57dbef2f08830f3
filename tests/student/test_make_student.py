"""A student is its teacher with fewer layers."""

import json
import sys

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
)

from hf_distill import __version__, make_student
from tests.conftest import collate, make_config, make_model, make_rows

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
INPUTS = {"input_ids": torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))}


def test_identity_map_gives_the_teachers_logits(family, head):
    teacher = make_model(family, head)
    student = make_student(teacher, layers=[0, 1, 2, 3])
    assert torch.equal(student(**INPUTS).logits, teacher(**INPUTS).logits)


def test_kept_layers_are_the_teachers(family, head):
    teacher = make_model(family, head)
    student = make_student(teacher, layers=[1, 3])
    stack = {
        "bert": "bert.encoder.layer",
        "roberta": "roberta.encoder.layer",
        "distilbert": "distilbert.transformer.layer",
    }
    for name, weight in student.state_dict().items():
        for new, old in ((0, 1), (1, 3)):
            name = name.replace(f"{stack[family]}.{new}.", f"{stack[family]}.teacher-{old}.")
        assert torch.equal(weight, teacher.state_dict()[name.replace("teacher-", "")]), name
    per_layer = teacher.num_parameters() - make_student(teacher, num_layers=3).num_parameters()
    assert teacher.num_parameters() - student.num_parameters() == 2 * per_layer > 0


def test_by_skipping_layers_in_the_teacher(family, head):
    """The student computes what the teacher computes when its other layers are left out."""
    teacher = make_model(family, head)
    student = make_student(teacher)
    expected = student(**INPUTS).logits
    stack = teacher.base_model.transformer if family == "distilbert" else teacher.base_model.encoder
    stack.layer = torch.nn.ModuleList([stack.layer[0], stack.layer[2]])
    assert torch.equal(expected, teacher(**INPUTS).logits)


def test_teacher_is_untouched(family, head):
    teacher = make_model(family, head)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = make_student(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    assert teacher.config.num_hidden_layers == 4
    assert not hasattr(teacher.config, "distilled_from")
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])


def test_ties_are_ties(family):
    student = make_student(make_model(family, "mlm"))
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_random_state_is_untouched():
    teacher = make_model("bert", "mlm")
    before = torch.get_rng_state()
    make_student(teacher)
    assert torch.equal(torch.get_rng_state(), before)


def test_save_and_load(tmp_path, family, head):
    student = make_student(make_model(family, head))
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert torch.equal(loaded(**INPUTS).logits, student(**INPUTS).logits)


def test_provenance(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path / "my-teacher")
    teacher = AutoModelForMaskedLM.from_pretrained(tmp_path / "my-teacher")
    make_student(teacher, layers="spread").save_pretrained(tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["distilled_from"] == {"teacher": "my-teacher", "layers": [0, 3], "hf_distill_version": __version__}
    assert str(tmp_path) not in json.dumps(config)  # no local path is published


def test_name_on_the_hub_is_kept():
    teacher = make_model("bert", "mlm")
    teacher.name_or_path = "google-bert/bert-base-uncased"
    assert make_student(teacher).config.distilled_from["teacher"] == "google-bert/bert-base-uncased"


def test_dtype_and_mode(family, head):
    student = make_student(make_model(family, head).to(torch.bfloat16).train())
    assert student.dtype == torch.bfloat16
    assert not student.training


def test_student_learns(family, head):
    student, batch = make_student(make_model(family, head)), collate(make_rows(head))
    student(**batch).loss.backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if p.requires_grad and "pooler" not in name)


@pytest.mark.parametrize(
    ("auto_class", "config"),
    [
        (AutoModel, make_config("bert")),
        (AutoModelForTokenClassification, make_config("roberta")),
        (AutoModelForQuestionAnswering, make_config("distilbert")),
        (AutoModelForMaskedLM, ModernBertConfig(**SIZES, global_attn_every_n_layers=2)),
        (AutoModelForCausalLM, GPT2Config(**SIZES)),
        (AutoModelForCausalLM, LlamaConfig(**SIZES)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_heads_and_architectures(auto_class, config):
    teacher = auto_class.from_config(config).eval()
    whole, half = make_student(teacher, num_layers=4), make_student(teacher)
    for expected, actual in zip(teacher(**INPUTS).to_tuple(), whole(**INPUTS).to_tuple(), strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(expected, actual)
    assert half.config.num_hidden_layers == 2
    assert half(**INPUTS)[0].shape == teacher(**INPUTS)[0].shape


@pytest.mark.parametrize("teacher", ["bert-base-uncased", BertConfig(), torch.nn.Linear(2, 2), None])
def test_not_a_model(teacher):
    with pytest.raises(TypeError, match=r"teacher should be a transformers model.*from_pretrained"):
        make_student(teacher)


def test_encoder_decoder():
    config = BartConfig(
        vocab_size=61, d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16
    )
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder"):
        make_student(AutoModelForSeq2SeqLM.from_config(config))


def test_layers_that_share_weights():
    config = AlbertConfig(**SIZES, embedding_size=8)
    with pytest.raises(
        ValueError, match=r"AlbertForMaskedLM should have one `nn.ModuleList` of 4 equal layers.*found none"
    ):
        make_student(AutoModelForMaskedLM.from_config(config))


def test_too_many_layers():
    with pytest.raises(ValueError, match="num_layers=5, but the teacher has 4 layers"):
        make_student(make_model("bert", "mlm"), num_layers=5)


def test_zero3_shards_what_is_made(monkeypatch):
    teacher = make_model("bert", "mlm")
    module = sys.modules["hf_distill.student.make_student"]
    monkeypatch.setattr(module, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="make the student before DistillationTrainingArguments"):
        make_student(teacher)
