"""Every loss in one table: its value, its gradient, and everything that must not change either.

A new loss is one row. The reference is a second implementation in numpy and float64. It reads each row alone, without
padding, from the models' own outputs.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_distill.training.losses import LOSSES
from tests.conftest import collate, make_model, make_rows
from tests.groups import collate_groups, make_groups
from tests.training.test_split_invariance import assert_equal_steps, one_step_of


@dataclass
class Outputs:
    """What a reference reads of a model for one row, in float64."""

    model: torch.nn.Module
    logits: np.ndarray
    hidden_states: list[np.ndarray]
    """The embeddings and the output of each layer, `[length, width]`."""

    def heads(self, layer: int, name: str, num_heads: int) -> np.ndarray:
        """Queries, keys or values of a layer of BERT, `[heads, length, head width]`."""
        projection = getattr(self.model.bert.encoder.layer[layer].attention.self, name)
        weight, bias = projection.weight.detach().numpy(), projection.bias.detach().numpy()
        vectors = self.hidden_states[layer] @ weight.T + bias
        return vectors.reshape(len(vectors), num_heads, -1).transpose(1, 0, 2)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def kl(student, teacher, row):
    p, q = softmax(teacher.logits / 2), softmax(student.logits / 2)
    return [4 * (p * np.log(p / q)).sum()]


def cross_entropy(student, teacher, row):
    return [-np.log(softmax(student.logits)[row["labels"]])]


def cosine(student, teacher):
    return 1 - (student * teacher).sum(-1) / np.linalg.norm(student, axis=-1) / np.linalg.norm(teacher, axis=-1)


def last_cosine(student, teacher, row):
    return cosine(student.hidden_states[-1], teacher.hidden_states[-1])


def of_layers(distance, layers=((0, 1), (1, 3)), embeddings=False):
    layers = [(-1, -1), *layers] if embeddings else layers

    def items(student, teacher, row):
        pairs = [(student.hidden_states[s + 1], teacher.hidden_states[t + 1]) for s, t in layers]
        return np.concatenate([distance(*pair) for pair in pairs])

    return items


def mean_squared_error(student, teacher):
    return ((student - teacher) ** 2).mean(-1)


def normalized_squared_error(student, teacher):
    student, teacher = (hidden / np.linalg.norm(hidden, axis=-1, keepdims=True) for hidden in (student, teacher))
    return ((student - teacher) ** 2).sum(-1)


def projected(distance, layers=((0, 1), (1, 3))):
    """The student's states go through the projections of the trainer, which `reference` puts on the model."""

    def items(student, teacher, row):
        maps = student.model.projections
        return np.concatenate(
            [
                distance(student.hidden_states[s + 1] @ maps[i].T, teacher.hidden_states[t + 1])
                for i, (s, t) in enumerate(layers)
            ]
        )

    return items


def attention(student, teacher, row, mean=False, num_heads=(2, 2)):
    items = []
    for layers in ((0, 1), (1, 3)):
        scores = []
        for outputs, layer, heads in zip((student, teacher), layers, num_heads, strict=True):
            queries, keys = outputs.heads(layer, "query", heads), outputs.heads(layer, "key", heads)
            products = queries @ keys.transpose(0, 2, 1) / np.sqrt(queries.shape[-1])
            scores.append(products.mean(0, keepdims=True) if mean else products)
        items += [((scores[0] - scores[1]) ** 2).mean((0, 2))]
    return np.concatenate(items)


def relation(student, teacher, row, num_heads=2, teacher_layer=3):
    items = 0.0
    for name in ("query", "key", "value"):
        relations = []
        for outputs, layer in ((student, 1), (teacher, teacher_layer)):
            vectors = outputs.heads(layer, name, num_heads)
            relations.append(softmax(vectors @ vectors.transpose(0, 2, 1) / np.sqrt(vectors.shape[-1])))
        q, p = relations
        items = items + (p * np.log(p / q)).sum(-1).mean(0)
    return items


def margin(student, teacher, row):
    """Over pairs of a relevant candidate and another."""
    off, labels = (student.logits - teacher.logits)[:, 0], np.array(row["labels"])
    return [(off[i] - off[j]) ** 2 for i in np.flatnonzero(labels > 0) for j in np.flatnonzero(labels == 0)]


def listwise(student, teacher, row):
    p, q = softmax(teacher.logits[:, 0] / 2), softmax(student.logits[:, 0] / 2)
    return [4 * (p * np.log(p / q)).sum()]


@dataclass
class Case:
    """A row of the table.

    Attributes:
        loss: name of the loss.
        reference: takes the outputs of student and teacher for a row, and the row; returns the loss of each item.
        arguments: training arguments.
        student: options of the student's config.
        models: options of both configs.
        grouped: whether a row has several candidates.
    """

    loss: str
    reference: Callable
    arguments: dict = field(default_factory=dict)
    student: dict = field(default_factory=dict)
    models: dict = field(default_factory=dict)
    grouped: bool = False

    @property
    def all_arguments(self) -> dict:
        off = {f"alpha_{name}": 0.0 for name in LOSSES}
        return {**off, f"alpha_{self.loss}": 1.0, **self.arguments}

    def pair(self):
        """A teacher, if the loss reads one, and a student."""
        teacher = self.teacher() if LOSSES[self.loss].reads_teacher else None
        return teacher, make_model("bert", "classification", seed=1, num_layers=2, **self.models, **self.student)

    def teacher(self):
        return make_model("bert", "classification", **self.models)

    def rows(self) -> list[dict]:
        return make_groups(16) if self.grouped else make_rows("classification")

    def collate(self, rows: list[dict], length: int | None = None) -> dict[str, torch.Tensor]:
        if not self.grouped:
            return collate(rows, length)
        padded = {} if length is None else {"padding": "max_length", "max_length": length}
        return replace(collate_groups, **padded)(rows)


NARROW = {"width": 8}
CASES = {
    "kl": Case("kl", kl),
    "task": Case("task", cross_entropy),
    "cos": Case("cos", last_cosine),
    "hidden": Case("hidden", of_layers(mean_squared_error)),
    "hidden cosine": Case("hidden", of_layers(cosine), {"hidden_loss": "cosine"}),
    "hidden normalized": Case("hidden", of_layers(normalized_squared_error), {"hidden_loss": "normalized_mse"}),
    "hidden embeddings": Case(
        "hidden",
        of_layers(mean_squared_error, [(0, 2)], embeddings=True),
        {"hidden_embeddings": True, "layer_map": [[0, 2]]},
    ),
    "hidden narrow": Case("hidden", projected(mean_squared_error), student=NARROW),
    "attention": Case("attention", attention),
    "attention narrow": Case("attention", attention, student=NARROW),
    "attention mean": Case(
        "attention",
        lambda *row: attention(*row, mean=True, num_heads=(4, 2)),
        {"attention_heads": "mean"},
        {"num_attention_heads": 4},
    ),
    "relation": Case("relation", relation),
    "relation narrow": Case(
        "relation",
        lambda *row: relation(*row, num_heads=8, teacher_layer=2),
        {"relation_heads": 8, "relation_layer": 2},
        {**NARROW, "num_attention_heads": 4},
    ),
    "margin": Case("margin", margin, models={"num_labels": 1}, grouped=True),
    "listwise": Case("listwise", listwise, models={"num_labels": 1}, grouped=True),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def outputs_of(model, row) -> Outputs:
    if isinstance(row["input_ids"][0], list):
        each = [outputs_of(model, {"input_ids": ids}).logits for ids in row["input_ids"]]
        return Outputs(model, np.stack(each), [])
    with torch.no_grad():
        output = model(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True)
    return Outputs(model, output.logits[0].numpy(), [hidden[0].numpy() for hidden in output.hidden_states])


def make_case_trainer(make_trainer, case, rows=None, **arguments):
    teacher, student = case.pair()
    options = {"data_collator": case.collate, **case.all_arguments, **arguments}
    return make_trainer(student, teacher, rows, rows or case.rows(), **options)


def test_every_loss_has_a_row():
    of_vectors = {name for name, loss in LOSSES.items() if loss.needs.embeddings}  # in test_embeddings.py
    assert {case.loss for case in CASES.values()} == LOSSES.keys() - of_vectors


@every_case
def test_value(make_trainer, case):
    """A padded batch gives the mean over the items of all rows, each read alone."""
    rows = case.rows()
    trainer = make_case_trainer(make_trainer, case)
    teacher = case.teacher().double()
    student = copy.deepcopy(trainer.model).double()
    projections = getattr(trainer.losses[case.loss], "projections", {})
    student.projections = [projection.weight.detach().double().numpy() for projection in dict(projections).values()]
    items = [case.reference(outputs_of(student, row), outputs_of(teacher, row), row) for row in rows]
    expected = np.concatenate(items).mean()
    assert abs(expected) > 1e-3
    assert trainer.evaluate()[f"eval_loss_{case.loss}"] == pytest.approx(expected, rel=1e-5)


@every_case
def test_zero_on_identical_models(make_trainer, case):
    if case.loss == "task":
        pytest.skip("compares with labels")
    teacher = case.teacher()
    arguments = {**case.all_arguments, "layer_map": None, "data_collator": case.collate}
    trainer = make_trainer(copy.deepcopy(teacher), teacher, eval_rows=case.rows(), **arguments)
    if "relation_layer" in case.arguments:
        trainer = make_trainer(
            copy.deepcopy(teacher),
            teacher,
            eval_rows=case.rows(),
            **{**arguments, "relation_layer": -1},
        )
    assert trainer.evaluate()[f"eval_loss_{case.loss}"] == pytest.approx(0, abs=1e-6)


@every_case
def test_gradient(make_trainer, case):
    """Along a random direction, the gradient is the difference quotient, in float64."""
    teacher, student = (model if model is None else model.double() for model in case.pair())
    trainer = make_trainer(student, teacher, case.rows(), data_collator=case.collate, **case.all_arguments)
    for loss in trainer.losses.values():
        loss.double()
    batch = case.collate(case.rows())
    parameters = [*student.parameters(), *trainer.loss_parameters.trained]
    student.eval()
    loss = trainer.compute_loss(student, batch)
    assert loss.dtype == torch.float64
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    torch.manual_seed(0)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None).item()
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter += step * along
            values.append(trainer.compute_loss(student, batch).item())
    assert abs(slope) > 1e-4
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


@every_case
def test_padding_changes_nothing(make_trainer, case):
    trainer = make_case_trainer(make_trainer, case)
    short = trainer.evaluate()[f"eval_loss_{case.loss}"]
    trainer.data_collator = lambda rows: case.collate(rows, length=30)
    assert trainer.evaluate()[f"eval_loss_{case.loss}"] == pytest.approx(short, rel=1e-5)


@every_case
def test_splits_and_gradient_checkpointing_change_nothing(make_trainer, case):
    def step(**arguments):
        teacher, student = case.pair()
        options = {"data_collator": case.collate, **case.all_arguments, **arguments}
        return one_step_of(make_trainer, student, teacher, case.rows(), [case.loss], **options)

    whole = step()
    assert_equal_steps(step(per_device_train_batch_size=4, gradient_accumulation_steps=4), whole)
    assert_equal_steps(step(per_device_train_batch_size=1, gradient_accumulation_steps=16), whole)
    assert_equal_steps(step(gradient_checkpointing=True), whole)


@every_case
def test_bfloat16_is_close(make_trainer, case):
    exact = make_case_trainer(make_trainer, case).evaluate()[f"eval_loss_{case.loss}"]
    rounded = make_case_trainer(make_trainer, case, bf16=True).evaluate()[f"eval_loss_{case.loss}"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@every_case
def test_a_resume_ends_in_the_same_weights(make_trainer, case, tmp_path):
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
    rows = case.rows()

    def weights(trainer):
        loss = [parameter.detach().clone() for parameter in trainer.loss_parameters.trained]
        return [*(parameter.detach().clone() for parameter in trainer.model.parameters()), *loss]

    trainer = make_case_trainer(make_trainer, case, rows, learning_rate=1e-2, **arguments)
    trainer.train()
    expected = weights(trainer)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "distillation_state.json").read_text())
    assert state[f"alpha_{case.loss}"] == 1.0
    resumed = make_case_trainer(make_trainer, case, rows, learning_rate=1e-2, **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(*pair) for pair in zip(weights(resumed), expected, strict=True))
    saved = load_file(Path(tmp_path, "out", "checkpoint-4", "model.safetensors"))
    assert saved.keys() <= resumed.model.state_dict().keys()  # without projections
