"""The calibrated choice gives the student closest to the teacher, measured independently."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from hf_distill import make_student
from hf_distill.student import calibration
from tests.conftest import collate, make_model, make_rows
from tests.student.tiny_models import tiny_model


def batches(head, num_rows=16):
    """Two batches of rows with different lengths. Their labels must not be read."""
    rows = make_rows(head, num_rows)
    return [collate(rows[: num_rows // 2]), collate(rows[num_rows // 2 :])]


def without_labels(batch):
    return {name: value for name, value in batch.items() if not name.startswith(("labels", "start_", "end_"))}


def distance(student, teacher, data, head):
    """The distance computed row by row, without padding."""
    values = []
    for batch in data:
        inputs = without_labels(batch)
        for index in range(len(next(iter(inputs.values())))):
            row = {name: value[index : index + 1] for name, value in inputs.items()}
            if head != "multiple_choice" and "attention_mask" in row:
                length = int(row["attention_mask"].sum())
                row = {name: value[:, :length] for name, value in row.items()}
            with torch.no_grad():
                own, theirs = student(**row), teacher(**row)
            if head == "none":
                values += (1 - F.cosine_similarity(own[0], theirs[0], dim=-1)).flatten().tolist()
            elif head == "regression":
                values += (own.logits - theirs.logits).square().flatten().tolist()
            elif head == "multi_label":
                kinds = [torch.distributions.Bernoulli(logits=output.logits) for output in (theirs, own)]
                values += torch.distributions.kl_divergence(*kinds).mean(-1).tolist()
            else:
                for name in [name for name in theirs if "logits" in name]:
                    kinds = [torch.distributions.Categorical(logits=output[name]) for output in (theirs, own)]
                    values += torch.distributions.kl_divergence(*kinds).flatten().tolist()
    return sum(values) / len(values)


HEADS = ["classification", "multi_label", "regression", "token_classification", "question_answering", "multiple_choice"]


@pytest.mark.parametrize("head", [*HEADS, "mlm", "causal", "image", "none"])
def test_nearest_of_all(head, caplog):
    family = {"causal": "gpt2", "image": "vit"}.get(head, "bert")
    teacher = make_model(family, "mlm" if head == "none" else head)
    if head == "none":
        teacher = teacher.bert
    data = batches("classification" if head == "none" else head)
    choices = [list(layers) for layers in itertools.combinations(range(4), 2)]
    expected = {
        tuple(layers): distance(make_student(teacher, layers=layers), teacher, data, head) for layers in choices
    }
    assert max(expected.values()) > 1.05 * min(expected.values())
    with caplog.at_level("INFO", logger="hf_distill"):
        student = make_student(teacher, layers="calibrated", calibration_data=data)
    nearest = min(expected, key=expected.get)
    assert tuple(student.config.distilled_from["layers"]) == nearest
    assert student.config.distilled_from["method"] == "calibrated"
    assert f"distance {expected[nearest]:.4f}" in caplog.text


def test_one_after_another(monkeypatch):
    """With too many choices, the layer that matters least is removed first."""
    teacher, data = make_model("bert", "mlm", num_layers=6), batches("mlm")
    monkeypatch.setattr(calibration, "MOST_CHOICES", 14)  # 6 layers to 4 are 15
    kept = list(range(6))
    for _ in range(2):
        fewer = [[other for other in kept if other != index] for index in kept]
        kept = min(fewer, key=lambda layers: distance(make_student(teacher, layers=layers), teacher, data, "mlm"))
    student = make_student(teacher, num_layers=4, layers="calibrated", calibration_data=data)
    assert student.config.distilled_from["layers"] == kept


def test_a_useless_layer_goes_first():
    teacher = make_model("bert", "classification")
    for name in ("attention.output", "output"):  # layer 2 adds nothing to its input
        dense = teacher.bert.encoder.layer[2].get_submodule(name).dense
        dense.weight.data.zero_()
        dense.bias.data.zero_()
    student = make_student(teacher, 3, "calibrated", calibration_data=batches("classification"))
    assert student.config.distilled_from["layers"] == [0, 1, 3]


@pytest.mark.parametrize("layers", ["calibrated", {"decoder": "calibrated"}])
def test_encoder_decoders(layers):
    """Missing decoder inputs are made from the labels."""
    teacher, data = make_model("t5", "seq2seq", num_layers=3), batches("seq2seq")
    student = make_student(teacher, layers=layers, calibration_data=data)
    kept = student.config.distilled_from["layers"]
    assert len(kept["decoder"]) == 1
    assert len(kept["encoder"]) == (1 if layers == "calibrated" else 2)
    given = [
        {
            **without_labels(batch),
            "decoder_input_ids": teacher.prepare_decoder_input_ids_from_labels(batch["labels"]),
            "decoder_attention_mask": (batch["labels"] != -100).long(),
        }
        for batch in data
    ]
    again = make_student(teacher, layers=layers, calibration_data=given)
    assert again.config.distilled_from["layers"] == kept


def test_layers_that_cannot_go():
    """ModernBERT's first layer has no norm before its attention, so students without it are impossible."""
    teacher = tiny_model("modernbert")
    data = [{"input_ids": torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(0))}]
    student = make_student(teacher, layers="calibrated", calibration_data=data)
    assert student.config.distilled_from["layers"][0] == 0


def test_teacher_and_random_state_are_untouched():
    teacher = make_model("bert", "mlm", dropout=0.5).train()
    weights = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    state = torch.get_rng_state()
    make_student(teacher, layers="calibrated", calibration_data=batches("mlm"))
    assert teacher.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in teacher.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "calibration_data is empty"),
        (iter([]), ValueError, "calibration_data is empty"),
        ([{"labels": torch.ones(2)}], ValueError, "has labels, but BertForMaskedLM needs input_ids: tokenize"),
        ([{"text": ["a", "b"]}], TypeError, "mappings from names to tensors.*'text': 'list'"),
        ({"input_ids": torch.ones(2, 3)}, TypeError, "contains 'input_ids'"),
        (["a text"], TypeError, "contains 'a text'"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        make_student(make_model("bert", "mlm"), layers="calibrated", calibration_data=data)


def test_outputs_that_are_not_finite():
    teacher = make_model("bert", "mlm")
    teacher.cls.predictions.bias.data[7] = torch.inf
    with pytest.raises(ValueError, match="has NaN or infinite outputs on calibration_data"):
        make_student(teacher, layers="calibrated", calibration_data=batches("mlm"))


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="num_layers=5, but the teacher has 4 layers"):
        make_student(make_model("bert", "mlm"), 5, "calibrated", calibration_data=batches("mlm"))
