"""A student is its teacher with fewer layers."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    BertConfig,
    BitsAndBytesConfig,
    EsmModel,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    XLMConfig,
)

from hf_distill import __version__, make_student
from hf_distill.student.architectures import find_layer_stacks
from tests.conftest import collate, make_config, make_model, make_rows
from tests.student.tiny_models import tiny_model

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
    """The student computes the same as the teacher without the removed layers."""
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


@pytest.mark.parametrize("model_type", ["bert", "vit", "wav2vec2", "t5"])
def test_random_state_is_untouched(model_type):
    teacher = tiny_model(model_type)
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
    assert config["distilled_from"] == {
        "teacher": "my-teacher",
        "revision": None,
        "layers": [0, 3],
        "num_teacher_layers": 4,
        "method": "spread",
        "hf_distill_version": __version__,
    }
    assert str(tmp_path) not in json.dumps(config)  # no local path is published


def test_name_and_revision_on_the_hub_are_kept():
    teacher = make_model("bert", "mlm")
    teacher.name_or_path = "google-bert/bert-base-uncased"
    teacher.config._commit_hash = "86b5e0934494bd15c9632b12f734a8a67f723594"  # as from_pretrained sets it
    provenance = make_student(teacher, layers=[0, 3]).config.distilled_from
    assert provenance["teacher"] == "google-bert/bert-base-uncased"
    assert provenance["revision"] == "86b5e0934494bd15c9632b12f734a8a67f723594"
    assert provenance["method"] == "explicit"


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
    with pytest.raises(TypeError, match=r"teacher must be a transformers model.*from_pretrained"):
        make_student(teacher)


def test_layers_that_share_weights():
    config = AlbertConfig(**SIZES, embedding_size=8)
    with pytest.raises(ValueError, match=r"AlbertForMaskedLM has no stack.*share one set of weights, as in ALBERT"):
        make_student(AutoModelForMaskedLM.from_config(config))


def test_layers_in_stages():
    with pytest.raises(ValueError, match=r"ResNetModel has no stack.*no number of layers"):
        make_student(AutoModel.from_config(make_config("resnet")))


def test_layers_in_pieces():
    config = XLMConfig(vocab_size=61, emb_dim=16, n_layers=4, n_heads=2, max_position_embeddings=40)
    with pytest.raises(
        ValueError,
        match=r"has no stack.*`num_hidden_layers` \(4\) .* is the length of several lists of modules: attentions",
    ):
        make_student(AutoModel.from_config(config))


@pytest.mark.parametrize(
    ("options", "layers", "method"),
    [
        ({}, ([0, 2], [0, 2]), ("alternate", "alternate")),
        ({"num_layers": 1, "layers": "last"}, ([3], [3]), ("last", "last")),
        ({"num_layers": {"decoder": 2}, "layers": "spread"}, ([0, 1, 2, 3], [0, 3]), ("all", "spread")),
        ({"layers": {"decoder": [1, 2]}}, ([0, 1, 2, 3], [1, 2]), ("all", "explicit")),
        ({"num_layers": {"encoder": 3}, "layers": {"decoder": "last"}}, ([0, 1, 2], [2, 3]), ("alternate", "last")),
    ],
)
@pytest.mark.parametrize("model_type", ["bart", "t5", "whisper"])
def test_a_map_for_each_stack(model_type, options, layers, method):
    teacher = tiny_model(model_type)
    student = make_student(teacher, **options)
    provenance = student.config.distilled_from
    assert (provenance["layers"]["encoder"], provenance["layers"]["decoder"]) == layers
    assert (provenance["method"]["encoder"], provenance["method"]["decoder"]) == method
    for stack, kept in zip(("encoder", "decoder"), layers, strict=True):
        path = find_layer_stacks(teacher)[stack].path
        own, teachers = student.get_submodule(path), teacher.get_submodule(path)
        assert len(own) == len(kept)
        for new, old in enumerate(kept):
            theirs = teachers[old].state_dict()
            for name, weight in own[new].state_dict().items():
                assert name in theirs or "relative_attention_bias" in name
                assert name not in theirs or torch.equal(weight, theirs[name])


def test_position_bias_of_the_first_layer_stays():
    """T5's first layer computes the position bias for all layers, also in the student."""
    teacher = tiny_model("t5")
    student = make_student(teacher, layers={"encoder": [2], "decoder": [1, 3]})
    for stack in ("encoder", "decoder"):
        own, theirs = (
            getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
            for model in (student, teacher)
        )
        assert torch.equal(own, theirs)


def test_blocks_for_each_layer():
    """ESM's contact head reads the attention heads of all layers, 2 per layer here."""
    teacher = tiny_model("esm")
    student = make_student(teacher, layers=[1, 3])
    regression = teacher.esm.contact_head.regression.weight
    assert torch.equal(student.esm.contact_head.regression.weight, regression[:, [2, 3, 6, 7]])


def test_blocks_of_several_weights():
    """All weights have the same shape, and none is mistaken for another."""

    class Esm(EsmModel):
        def __init__(self, config):
            super().__init__(config)
            blocks = 2 * config.num_hidden_layers
            self.blocks = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(500, blocks)) for _ in range(20))
            self.post_init()

    teacher = Esm(tiny_model("esm").config).eval()
    student = make_student(teacher, layers=[1, 3])
    for own, theirs in zip(student.blocks, teacher.blocks, strict=True):
        assert torch.equal(own, theirs[:, [2, 3, 6, 7]])


def test_blocks_are_not_looked_for_inside_of_a_layer():
    """A layer of twice the width is refused, although there are twice as many layers."""
    teacher = tiny_model("bert")
    wide = tiny_model("bert", intermediate_size=64).bert.encoder.layer[2]
    teacher.bert.encoder.layer[2] = wide
    with pytest.raises(
        ValueError, match=r"layer.2.intermediate.dense.weight has the shape \(64, 16\), but \(32, 16\) in the student"
    ):
        make_student(teacher)


def test_generation_goes_on():
    teacher = tiny_model("bart")
    teacher.generation_config.max_new_tokens = 5
    student = make_student(teacher, num_layers={"decoder": 1})
    assert student.generation_config.to_dict() == teacher.generation_config.to_dict()
    assert student.generate(INPUTS["input_ids"]).shape[0] == 3


def test_layers_of_a_kind_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\[2, 3\]: the student has no place for model.layers.2.attn_norm.weight"):
        make_student(tiny_model("modernbert"), layers=[2, 3])


def test_ties_that_are_none():
    teacher = make_model("bert", "mlm")
    teacher.cls.predictions.decoder.weight = torch.nn.Parameter(torch.randn(61, 16))
    with pytest.raises(ValueError, match=r"to other weights.*set tie_word_embeddings=False"):
        make_student(teacher)


def test_adapters_are_merged():
    """The student is cut from the base with merged adapters. The teacher's adapters do not change."""
    teacher = get_peft_model(
        make_model("bert", "classification"),
        LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False),
    )
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    whole, half = make_student(teacher, num_layers=4), make_student(teacher)
    torch.testing.assert_close(whole(**INPUTS).logits, teacher.eval()(**INPUTS).logits)
    assert not any("lora" in name for name in half.state_dict())
    assert half.config.distilled_from["merged_adapters"] == ["default"]
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_adapters_that_cannot_be_merged():
    teacher = make_model("bert", "classification")
    teacher.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(
        ValueError, match=r"has adapters from add_adapter, which cannot be merged: load them with PeftModel"
    ):
        make_student(teacher)


def test_quantised_teacher(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    teacher = AutoModelForMaskedLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(ValueError, match=r"BertForMaskedLM is quantized.*without quantization_config"):
        make_student(teacher)


def test_teacher_on_the_meta_device():
    with torch.device("meta"):
        teacher = AutoModelForMaskedLM.from_config(make_config("bert"))
    with pytest.raises(ValueError, match=r"on the meta device: they were never loaded, or are offloaded"):
        make_student(teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers=0, but the teacher has 4 layers"),
        ({"layers": "middle"}, "'middle' is not a known strategy.*'calibrated'"),
        ({"layers": [0, 4]}, r"\[4\] out of range"),
        ({"layers": [0, 0]}, "repeated or out of order"),
        ({"layers": {"encoder": [0]}}, "names 'encoder', but the teacher has the stacks 'layers'"),
        ({"family": "roberta"}, "family='roberta' is unknown: use 'distilbert'"),
        ({"layers": "calibrated"}, "use both together"),
        ({"calibration_data": [INPUTS]}, "use both together"),
    ],
)
def test_bad_choice(options, message):
    with pytest.raises(ValueError, match=message):
        make_student(make_model("bert", "mlm"), **options)


def test_indices_without_a_stack():
    with pytest.raises(
        ValueError, match=r"the teacher has several: give indices by stack, such as layers={'encoder': \[0\], 'decoder'"
    ):
        make_student(tiny_model("bart"), layers=[0])


def test_too_many_layers():
    with pytest.raises(ValueError, match="num_layers=5, but the teacher has 4 layers"):
        make_student(make_model("bert", "mlm"), num_layers=5)


def test_zero3_shards_what_is_made(monkeypatch):
    teacher = make_model("bert", "mlm")
    module = sys.modules["hf_distill.student.make_student"]
    monkeypatch.setattr(module, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="call make_student before DistillationTrainingArguments"):
        make_student(teacher)


def test_what_the_teacher_was_made_without():
    teacher = AutoModel.from_config(make_config("bert"), add_pooling_layer=False).eval()
    student = make_student(teacher, num_layers=4)
    assert student.pooler is None
    assert torch.equal(student(**INPUTS)[0], teacher(**INPUTS)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "whisper", "vit"])
def test_on_a_gpu(model_type):
    """The student is on its teacher's device, including buffers."""
    teacher = tiny_model(model_type).to("cuda", torch.bfloat16)
    student = make_student(teacher)
    tensors = [*student.parameters(), *student.buffers()]
    assert {tensor.device for tensor in tensors} == {teacher.device}
    assert student.dtype == torch.bfloat16
