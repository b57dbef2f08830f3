"""`make_student` with sizes: what stays, what is recorded, and what is refused."""

import copy
import json

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_distill import make_student
from hf_distill.student.axes import find_axes
from hf_distill.training.scoring.inputs import decoder_input_ids_of
from tests.conftest import make_model
from tests.speech import make_whisper
from tests.student.width.models import wide_model

INPUTS = {"input_ids": torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))}
WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
WIDTHS = ["magnitude", "activation", "taylor"]


@pytest.fixture
def teacher():
    """A classifier with 4 layers, 4 heads of width 8 and 48 feed-forward units."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=61, num_hidden_layers=4, initializer_range=0.2, num_labels=3, **WIDE)
    return AutoModelForSequenceClassification.from_config(config).eval()


def data_for(width):
    if width == "magnitude":
        return None
    mask = torch.ones_like(INPUTS["input_ids"])
    mask[0, 5:] = 0
    return [{**INPUTS, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("written", [False, True], ids=["not read", "not written"])
def test_planted_dead_units_are_found(teacher, width, written):
    """Each layer has other dead neurons and heads. Without them, the student is exact."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            neurons = torch.randperm(48, generator=generator)[:20]
            heads = torch.randperm(4, generator=generator)[:2]
            values = (heads[:, None] * 8 + torch.arange(8)).flatten()
            attention = layer.attention
            if written:  # nothing is written to them: the activation is 0
                for linear, rows in ((layer.intermediate.dense, neurons), (attention.self.value, values)):
                    linear.weight[rows], linear.bias[rows] = 0.0, 0.0
            else:
                layer.output.dense.weight[:, neurons] = 0.0
                attention.output.dense.weight[:, values] = 0.0
    expected = teacher(**INPUTS).logits
    student = make_student(teacher, intermediate_size=28, width=width, calibration_data=data_for(width))
    torch.testing.assert_close(student(**INPUTS).logits, expected, rtol=0, atol=1e-5)
    assert student.config.intermediate_size == 28


@pytest.mark.parametrize("width", WIDTHS)
def test_dead_heads_are_found_with_the_hidden_width(teacher, width):
    """Nothing is written to the first heads of each layer, and to most neurons, so no gradient goes through them."""
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            for linear, rows in ((layer.attention.self.value, 16), (layer.intermediate.dense, 46)):
                linear.weight[:rows], linear.bias[:rows] = 0.0, 0.0
    student = make_student(
        teacher, hidden_size=16, num_attention_heads=2, width=width, calibration_data=data_for(width)
    )
    kept = student.bert.encoder.layer[0].attention.self.value.bias
    assert torch.equal(kept, teacher.bert.encoder.layer[0].attention.self.value.bias[16:])


@pytest.mark.parametrize("width", WIDTHS)
def test_planted_dead_heads_are_found(width):
    """Heads alone, in a model whose config has the width of a head. Heads in groups of 2 share keys."""
    teacher = wide_model("llama")
    with torch.no_grad():
        for index, layer in enumerate(teacher.model.layers):
            dead = slice(0, 16) if index % 2 else slice(16, 32)  # the heads of one group
            layer.self_attn.o_proj.weight[:, dead] = 0.0
    expected = teacher(**INPUTS).logits
    data = [INPUTS | {"labels": INPUTS["input_ids"]}] if width != "magnitude" else None
    student = make_student(teacher, num_attention_heads=2, width=width, calibration_data=data)
    assert student.config.num_key_value_heads == 1
    torch.testing.assert_close(student(**INPUTS).logits, expected, rtol=0, atol=1e-5)


def test_heads_within_each_group():
    teacher = wide_model("llama")
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight.unflatten(1, (4, 8))[:, [1, 2]] = 0.0  # one head of each group
    expected = teacher(**INPUTS).logits
    student = make_student(teacher, num_attention_heads=2, num_key_value_heads=2)
    torch.testing.assert_close(student(**INPUTS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_planted_dead_hidden_units_are_found(width):
    """No layer reads or writes half of the hidden states, and RMSNorm is scaled for the kept ones."""
    config = LlamaConfig(vocab_size=61, num_hidden_layers=2, head_dim=8, initializer_range=0.2, **WIDE)
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(config).eval()
    dead = torch.arange(1, 32, 2)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[dead] = 0.0
            elif weight.ndim == 2:
                weight[:, dead] = 0.0
    student = make_student(teacher, hidden_size=16, width=width, calibration_data=data_of_text(width))
    scaled = copy.deepcopy(student)
    with torch.no_grad():
        for name, weight in scaled.named_parameters():
            if "norm" in name:
                weight *= 2**0.5  # the mean square over 16 values is twice that over 32, half of which are 0
    torch.testing.assert_close(scaled(**INPUTS).logits, teacher(**INPUTS).logits, rtol=1e-3, atol=1e-4)


def data_of_text(width):
    return None if width == "magnitude" else [INPUTS | {"labels": INPUTS["input_ids"]}]


def test_in_every_direction_at_once(teacher, tmp_path):
    kept = list(range(0, 61, 2))
    student = make_student(
        teacher, layers=[0, 3], hidden_size=16, num_attention_heads=2, intermediate_size=12, vocabulary=kept
    )
    config = student.config
    sizes = config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size
    assert sizes == (2, 16, 2, 12)
    assert config.vocab_size == 31
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = {"input_ids": INPUTS["input_ids"] // 2}
    assert torch.equal(loaded(**inputs).logits, student(**inputs).logits)
    provenance = json.loads((tmp_path / "config.json").read_text())["distilled_from"]
    assert provenance["layers"] == [0, 3]
    assert provenance["width"] == "magnitude"
    assert provenance["sizes"] == {
        "hidden_size": {"student": 16, "teacher": 32},
        "num_attention_heads": {"student": 2, "teacher": 4},
        "intermediate_size": {"student": 12, "teacher": 48},
    }
    assert provenance["vocabulary"] == {"kept": 31, "of": 61}


def test_all_layers_stay_unless_asked(teacher):
    assert make_student(teacher, intermediate_size=12).config.num_hidden_layers == 4
    assert make_student(teacher, vocabulary=range(40)).config.num_hidden_layers == 4
    assert make_student(teacher, layers="spread", intermediate_size=12).config.distilled_from["layers"] == [0, 3]


def test_the_teacher_is_untouched(teacher):
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    requires = [weight.requires_grad for weight in teacher.parameters()]
    student = make_student(
        teacher, hidden_size=16, num_attention_heads=2, width="taylor", calibration_data=data_for("taylor")
    )
    with torch.no_grad():
        for weight in student.parameters():
            weight.fill_(7.0)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])
    assert [weight.requires_grad for weight in teacher.parameters()] == requires
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(not module._forward_pre_hooks and "forward" not in vars(module) for module in teacher.modules())
    assert teacher.config.hidden_size == 32


def test_a_model_without_pooler_and_one_without_a_stack():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=61, num_hidden_layers=2, **WIDE)
    student = make_student(BertModel(config, add_pooling_layer=False), hidden_size=16, num_attention_heads=2)
    assert student.pooler is None
    albert = AlbertModel(AlbertConfig(vocab_size=61, embedding_size=16, **WIDE))
    narrow = make_student(albert, intermediate_size=8)
    assert (narrow.config.intermediate_size, narrow.config.embedding_size) == (8, 16)
    assert narrow.config.distilled_from["layers"] == {}


def test_distilbert_of_any_width(teacher):
    student = make_student(teacher, family="distilbert", intermediate_size=12, num_layers=2)
    assert (student.config.model_type, student.config.hidden_dim, student.config.n_layers) == ("distilbert", 12, 2)


def test_sizes_by_stack():
    teacher = wide_model("bart")
    student = make_student(teacher, intermediate_size={"decoder": 12})
    assert (student.config.encoder_ffn_dim, student.config.decoder_ffn_dim) == (48, 12)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"intermediate_size": 49}, r"use an integer from 1 to 48"),
        ({"intermediate_size": 0}, r"use an integer from 1 to 48"),
        ({"intermediate_size": 1.5}, r"use an integer from 1 to 48"),
        ({"num_attention_heads": 2}, r"Give hidden_size= too"),
        ({"hidden_size": 16}, r"change the width of a head, which is 8.*num_attention_heads=2"),
        ({"hidden_size": 20}, r"does not fit"),
        ({"hidden_size": 18}, r"does not allow hidden_size=18: .*\. Give num_attention_heads= too"),
        ({"hidden_size": 30, "num_attention_heads": 4}, r"BertForSequenceClassification does not allow|does not fit"),
        ({"num_key_value_heads": 2}, r"no number for the key-value heads. It has: hidden_size"),
        ({"intermediate_size": {"decoder": 12}}, r"names 'decoder'.*'layers'"),
        ({"intermediate_size": 12, "width": "random"}, r"use 'magnitude', 'activation', 'taylor', 'pca'"),
        ({"intermediate_size": 12, "width": "activation"}, r"give calibration_data="),
        ({"width": "activation", "calibration_data": []}, r"no effect without a size"),
        ({"intermediate_size": 12, "width": "activation", "calibration_data": []}, r"has no batches"),
        ({"intermediate_size": 12, "calibration_data": [INPUTS]}, r"calibration_data is given"),
        ({"intermediate_size": 12, "width": "taylor", "calibration_data": [INPUTS]}, r"put labels into"),
        ({"vocabulary": [0, 1, 61]}, r"have \[61\], but must be different ids from 0 to 60: give trim_vocabulary"),
        ({"vocabulary": [0, 1, -1]}, r"have \[-1\], but must be"),
        ({"vocabulary": [0, 1, 1]}, r"have some id twice, but must be"),
        ({"vocabulary": ["the"]}, r"have \['the'\], but must be"),
        ({"vocabulary": range(1, 30)}, r"refer to the tokens \[0\]: keep them"),
    ],
)
def test_bad_sizes(teacher, sizes, reason):
    with pytest.raises(ValueError, match=reason):
        make_student(teacher, **sizes)


def test_groups_that_do_not_fit():
    teacher = wide_model("llama")
    with pytest.raises(
        ValueError, match="2 heads of the teacher share each of its 2 key-value heads: use a multiple of 2"
    ):
        make_student(teacher, num_attention_heads=3)
    with pytest.raises(ValueError, match="groups of 2 that share keys"):
        make_student(teacher, num_attention_heads=3, num_key_value_heads=2)


def test_a_student_that_does_not_match_is_refused(teacher, monkeypatch):
    own_forward = type(teacher).forward

    def forward(self, *args, **kwargs):
        output = own_forward(self, *args, **kwargs)
        output.logits = output.logits * self.config.intermediate_size**0.5
        return output

    monkeypatch.setattr(type(teacher), "forward", forward)
    with pytest.raises(ValueError, match=r"logits does not match .* with the removed units silenced"):
        make_student(teacher, intermediate_size=12)


def test_find_axes_of_bert():
    model = BertModel(BertConfig(vocab_size=61, num_hidden_layers=2, **WIDE))
    axes = {axis.number: axis for axis in find_axes(model)}
    assert {number: (axis.size, axis.kind) for number, axis in axes.items() if axis.kind != "other"} == {
        "vocab_size": (61, "vocabulary"),
        "hidden_size": (32, "hidden width"),
        "num_attention_heads": (4, "attention heads"),
        "intermediate_size": (48, "feed-forward width"),
    }
    assert axes["intermediate_size"].places == {
        "encoder.layer.0.intermediate.dense.weight": {0: 48},
        "encoder.layer.0.intermediate.dense.bias": {0: 48},
        "encoder.layer.0.output.dense.weight": {1: 48},
    }
    assert axes["num_attention_heads"].places == {}
    assert axes["vocab_size"].places == {"embeddings.word_embeddings.weight": {0: 61}}


def test_right_after_a_training_in_bf16(teacher, tmp_path):
    """The training leaves a forward that computes with autocast, which is not what the student is compared with."""
    rows = [{"input_ids": [5, 6, 7], "labels": label} for label in (0, 1)]
    args = TrainingArguments(str(tmp_path), bf16=True, use_cpu=True, max_steps=1, report_to="none")
    Trainer(teacher, args, train_dataset=rows).train()
    forward = teacher.forward
    student = make_student(teacher, 2, hidden_size=16, num_attention_heads=2, vocabulary=range(40))
    assert student(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32
    assert teacher.forward is forward
    assert "_original_forward" in vars(teacher)
    assert "forward" not in vars(student)


@pytest.mark.parametrize("family", ["bart", "t5", "whisper"])
def test_decoder_inputs_come_from_the_labels(family):
    """Collators give labels and often no decoder inputs, which the model then makes of the labels."""
    teacher = make_whisper() if family == "whisper" else make_model(family, "seq2seq")
    labels = torch.randint(5, 14, (3, 6), generator=torch.Generator().manual_seed(1))
    read = (
        {"input_features": torch.randn(3, 8, 200)} if family == "whisper" else {"input_ids": INPUTS["input_ids"] % 20}
    )
    batches = {**read, "labels": labels}, {**read, "decoder_input_ids": decoder_input_ids_of(teacher, labels)}
    students = [
        make_student(teacher, intermediate_size=8, width="activation", calibration_data=[batch]) for batch in batches
    ]
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
