"""Each loss against a second implementation, in numpy and float64, from the formula."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_distill import DistillationTrainingArguments
from hf_distill.training.losses import (
    LOSSES,
    TASK_LOSSES,
    CosineLoss,
    Loss,
    Needs,
    ScoredItems,
    Setup,
    Signals,
)
from hf_distill.training.losses.task import binary_cross_entropy, cross_entropy, squared_error
from hf_distill.training.scoring.alignment import head_spec
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.scored import Scored
from tests.conftest import collate, make_model, make_rows


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def kl_by_definition(student_logits, teacher_logits, temperature):
    total = 0.0
    for student_row, teacher_row in zip(student_logits, teacher_logits, strict=True):
        p, q = softmax(teacher_row / temperature), softmax(student_row / temperature)
        total += sum(p_i * (np.log(p_i) - np.log(q_i)) for p_i, q_i in zip(p, q, strict=True))
    return temperature**2 * total


def cross_entropy_by_definition(student_logits, labels, smoothing=0.0):
    total = 0.0
    for row, label in zip(student_logits, labels, strict=True):
        if label != -100:
            log_probs = np.log(softmax(row))
            total += -(1 - smoothing) * log_probs[label] - smoothing * log_probs.mean()
    return total


def cosine_by_definition(student_hidden, teacher_hidden, attended):
    total = 0.0
    for i, j in zip(*np.nonzero(attended), strict=True):
        u, v = student_hidden[i, j], teacher_hidden[i, j]
        total += 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
    return total


def cosine_loss(student_hidden, teacher_hidden, weights):
    student, teacher = Signals(last_hidden_state=student_hidden), Signals(last_hidden_state=teacher_hidden)
    return CosineLoss()(student, teacher, ScoredItems(state_weights=weights))


shapes = st.tuples(st.integers(0, 7), st.integers(2, 9))
seeds = st.integers(0, 2**16)


@given(shape=shapes, seed=seeds, smoothing=st.sampled_from([0.0, 0.1]), share=st.floats(0, 1))
def test_task(shape, seed, smoothing, share):
    rng = np.random.default_rng(seed)
    student_logits = rng.normal(scale=3, size=shape)
    labels = np.where(rng.random(shape[0]) < share, rng.integers(0, shape[1], shape[0]), -100)
    loss = cross_entropy(torch.tensor(student_logits), torch.tensor(labels), smoothing)
    expected = cross_entropy_by_definition(student_logits, labels, smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(seed=seeds, share=st.floats(0, 1))
def test_cosine(seed, share):
    rng = np.random.default_rng(seed)
    student_hidden, teacher_hidden = rng.normal(size=(2, 3, 5, 8))
    attended = rng.random((3, 5)) < share
    loss = cosine_loss(
        torch.tensor(student_hidden), torch.tensor(teacher_hidden), torch.tensor(attended, dtype=torch.float)
    )
    expected = cosine_by_definition(student_hidden, teacher_hidden, attended)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_padding_may_hold_anything():
    student_hidden = torch.randn(2, 4, 8, requires_grad=True)
    teacher_hidden = torch.randn(2, 4, 8)
    attended = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    expected = cosine_loss(student_hidden, teacher_hidden, attended.float())
    with torch.no_grad():
        student_hidden[~attended] = float("nan")
        teacher_hidden[~attended] = float("inf")
    loss = cosine_loss(student_hidden, teacher_hidden, attended.float())
    loss.backward()
    assert torch.equal(loss, expected)
    assert student_hidden.grad.isfinite().all()
    assert not student_hidden.grad[~attended].any()


@pytest.fixture
def setup_of_all(tmp_path):
    """A setup with which every loss can be made."""
    file = tmp_path / "anchors.safetensors"
    save_file({"vectors": torch.eye(3)}, file, metadata={"teacher": "a", "fingerprint": "b"})
    return make_setup(alpha_anchor=1.0, anchors=str(file))


def test_items_are_what_is_summed(setup_of_all):
    attended = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    labels = torch.tensor([[7, -100, -100], [-100, 9, -100]])
    scored = Scored(attended, positions=attended, labelled=labels.ne(-100), labels=labels)
    items = {
        name: loss.from_setup(setup_of_all).items(scored).item()
        for name, loss in LOSSES.items()
        if not loss.needs.groups
    }
    # Four pairs of layers for the losses over all layers, and one for the relation.
    of_layers = {"hidden": 20, "attention": 20, "relation": 5}
    assert items == {"kl": 5, "task": 2, "cos": 5, **of_layers, "embedding": 5, "similarity": 5, "anchor": 5}


def test_items_of_groups():
    """Two queries with three candidates and two, of which two and one are relevant; then one without labels."""
    candidates = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    labels = torch.tensor([2.0, 0.5, 0, 1, 0, -100, float("nan")]).unsqueeze(1)
    positions = torch.ones(7, dtype=torch.bool)
    scored = Scored(positions[:, None], positions, labels.ge(0), labels, candidates=candidates)
    items = {
        name: loss.from_setup(make_setup()).items(scored).item() for name, loss in LOSSES.items() if loss.needs.groups
    }
    assert items == {"margin": 2 + 1, "listwise": 3}


@given(shape=shapes, seed=seeds, share=st.floats(0, 1))
def test_binary_cross_entropy(shape, seed, share):
    rng = np.random.default_rng(seed)
    student_logits, yes = rng.normal(scale=3, size=shape), rng.integers(0, 2, shape)
    labels = np.where(rng.random(shape) < share, yes, -100).astype(float)
    probability = np.where(yes == 1, 1 / (1 + np.exp(-student_logits)), 1 / (1 + np.exp(student_logits)))
    loss = binary_cross_entropy(torch.tensor(student_logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(-np.log(probability)[labels != -100].sum(), rel=1e-5, abs=1e-5)


@given(shape=shapes, seed=seeds, share=st.floats(0, 1))
def test_squared_errors(shape, seed, share):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(scale=3, size=(2, *shape))
    known = rng.random(shape) < share
    labels = torch.tensor(np.where(known, teacher, np.nan), requires_grad=False)
    logits = torch.tensor(student, requires_grad=True)
    loss = squared_error(logits, labels)
    assert loss.item() == pytest.approx(((student - teacher)[known] ** 2).sum(), rel=1e-5, abs=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_cosine_of_states_that_do_not_match():
    with pytest.raises(ValueError, match=r"student's are \[2, 3, 4\] and the teacher's \[2, 3, 8\]: set alpha_cos=0"):
        cosine_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 8), torch.ones(2, 3))


SUMS = [*TASK_LOSSES.values()]


def make_setup(top_k=None, **arguments):
    model = make_model("bert", "classification")
    outputs = head_spec(model)
    arguments = DistillationTrainingArguments("out", **arguments)
    return Setup(arguments, find_head(model), student=outputs, teacher=outputs, top_k=top_k, models=(model, model))


@pytest.mark.parametrize("described", [*SUMS, *LOSSES.values()], ids=lambda described: described.__name__)
def test_every_loss_is_complete(described):
    needed = {"Reference:", "Example:"} | ({"Args:", "Returns:"} if described in SUMS else set())
    assert needed <= set(described.__doc__.split())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_keeps_the_contract(name, setup_of_all):
    assert hasattr(DistillationTrainingArguments("out"), f"alpha_{name}")
    loss = LOSSES[name].from_setup(setup_of_all)
    needs = loss.needs
    assert needs.logits + needs.embeddings + needs.last_hidden_state + needs.layers == 1
    assert loss.description
    assert loss.reads_teacher == (name != "task")
    assert loss.citation.startswith("@") or not loss.reads_teacher
    assert {*loss.options} <= DistillationTrainingArguments.__dataclass_fields__.keys()
    assert not list(loss.parameters())


def test_setup_says_which_loss():
    assert LOSSES["kl"].from_setup(make_setup()).distribution == "categorical"
    assert LOSSES["kl"].from_setup(make_setup(top_k=64)).distribution == "top k"
    smoothed = LOSSES["task"].from_setup(make_setup(label_smoothing_factor=0.1))
    assert smoothed.state() == {"label_smoothing": 0.1}
    assert LOSSES["kl"].from_setup(make_setup(temperature=3.0)).state() == {"temperature": 3.0}
    assert LOSSES["cos"].from_setup(make_setup(project_hidden_states=True)).projection is not None


class AbsoluteDifference(Loss):
    """The absolute difference of logits.

    Reference: none
    """

    needs = Needs(logits=True)
    description = "the absolute difference of logits"

    def forward(self, student, teacher, scored):
        return (student.logits - teacher.logits).abs().sum()


@dataclass
class MoreArguments(DistillationTrainingArguments):
    alpha_absolute: float = field(default=0.5, metadata={"help": "Weight of the absolute difference of logits."})


def test_a_loss_is_a_class_a_row_and_a_field(make_trainer, monkeypatch):
    """One row is enough: arguments, teacher, log, checkpoint and card then know the loss."""
    monkeypatch.setitem(LOSSES, "absolute", AbsoluteDifference)
    monkeypatch.setattr("tests.training.conftest.DistillationTrainingArguments", MoreArguments)
    rows = make_rows("classification")
    teacher, student = make_model("bert", "classification"), make_model("bert", "classification", seed=1)
    trainer = make_trainer(student, teacher, rows, rows, max_steps=1, alpha_kl=0.0, alpha_cos=0.0)
    expected = (collated_logits(student, rows) - collated_logits(teacher, rows)).abs().sum(1).mean().item()
    assert trainer.evaluate()["eval_loss_absolute"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    log = trainer.state.log_history[-2]
    assert log["loss"] == pytest.approx(0.5 * log["loss_absolute"] + 2 * log["loss_task"], rel=1e-6)
    trainer.save_model()
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert "loss = 2 * L_task + 0.5 * L_absolute" in card
    assert "- `L_absolute`: the absolute difference of logits" in card
    with pytest.raises(ValueError, match=r"alpha_absolute=0\.5 need a teacher"):
        make_trainer(student, None, rows, alpha_kl=0.0, alpha_cos=0.0)
    with pytest.raises(ValueError, match=r"alpha_absolute=-1 should be 0 \(off\) or above"):
        MoreArguments("out", alpha_absolute=-1)


def collated_logits(model, rows):
    batch = collate(rows)
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
