"""The losses over the candidates of a query, and everything that reads grouped rows."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import (
    DistillationTrainingArguments,
    Loss,
    Needs,
    add_teacher_targets,
    check_split_invariance,
    join_teacher_targets,
)
from hf_distill.training.losses import LOSSES, ListwiseLoss, MarginLoss
from hf_distill.training.scoring import pieces
from tests.conftest import make_model, make_rows
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.groups import collate_groups as collate
from tests.groups import make_groups
from tests.processes import run_on_two_processes
from tests.training.losses.test_matrix import softmax
from tests.training.test_split_invariance import assert_equal_steps, one_step_of

OFF = {f"alpha_{name}": 0.0 for name in LOSSES}
BOTH = {**OFF, "alpha_margin": 1.0, "alpha_listwise": 1.0}
ALL = {**BOTH, "alpha_kl": 1.0, "alpha_task": 1.0, "alpha_cos": 1.0}
PROBLEM_TYPES = pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])


def make_pair(problem_type="regression"):
    options = {"num_labels": 1, "problem_type": problem_type}
    teacher = make_model("bert", "classification", **options)
    return teacher, make_model("bert", "classification", seed=1, num_layers=2, **options)


def scores_of(model, row):
    """The score of each candidate, read alone, in float64."""
    with torch.no_grad():
        return np.array([model.double()(input_ids=torch.tensor([ids])).logits.item() for ids in row["input_ids"]])


def margins(student, teacher, labels):
    """Loops over the pairs of a query."""
    return [
        ((student[i] - student[j]) - (teacher[i] - teacher[j])) ** 2
        for i in range(len(labels))
        for j in range(len(labels))
        if labels[i] > 0 and labels[j] == 0
    ]


def listwise(student, teacher, labels, temperature=2.0):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return [temperature**2 * (p * np.log(p / q)).sum()]


def pointwise(student, teacher, labels):
    return (student - teacher) ** 2


def squared_error(student, teacher, labels):
    return (student - np.array(labels)) ** 2


REFERENCES = {"margin": margins, "listwise": listwise, "kl": pointwise, "task": squared_error}


def make_ranker(make_trainer, rows, problem_type="regression", **arguments):
    teacher, student = make_pair(problem_type)
    return make_trainer(student, teacher, rows, rows, data_collator=collate, **{**BOTH, **arguments})


@pytest.mark.parametrize("name", REFERENCES)
def test_value(make_trainer, name):
    """Each is the mean over its own items, with every candidate read alone."""
    rows = make_groups()
    assert len({len(row["labels"]) for row in rows}) > 2
    assert {sum(row["labels"]) for row in rows} == {1, 2}
    teacher, student = make_pair()
    items = [REFERENCES[name](*(scores_of(model, row) for model in (student, teacher)), row["labels"]) for row in rows]
    teacher, student = make_pair()
    teacher = teacher if LOSSES[name].reads_teacher else None
    trainer = make_trainer(student, teacher, None, rows, data_collator=collate, **{**OFF, f"alpha_{name}": 1.0})
    for batch_size in (8, 3, 1):
        trainer.args.per_device_eval_batch_size = batch_size
        assert trainer.evaluate()[f"eval_loss_{name}"] == pytest.approx(np.concatenate(items).mean(), rel=1e-5)


def test_the_temperature_of_the_listwise_loss(make_trainer):
    """Also for numbers, whose other losses have no temperature, and with a schedule."""
    rows, (teacher, student) = make_groups(), make_pair()
    items = [listwise(scores_of(student, row), scores_of(teacher, row), None, 0.5) for row in rows]
    only = {**OFF, "alpha_listwise": 1.0}
    for temperature in (0.5, "linear:4->0.5"):
        evaluated = make_ranker(make_trainer, rows, temperature=temperature, **only).evaluate()
        assert evaluated["eval_loss_listwise"] == pytest.approx(np.mean(items), rel=1e-5)
    DistillationTrainingArguments("out", temperature=0.5, divergence="mse", alpha_listwise=1.0)
    with pytest.raises(ValueError, match=r"temperature=0\.5 would have no effect"):
        make_ranker(make_trainer, rows, temperature=0.5, alpha_listwise=0.0)


@PROBLEM_TYPES
def test_gradient_is_the_difference_quotient(make_trainer, problem_type):
    teacher, student = (model.double() for model in make_pair(problem_type))
    trainer = make_trainer(student, teacher, make_groups(), data_collator=collate, **BOTH)
    batch, parameters = collate(make_groups()), list(student.parameters())
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
    assert abs(slope) > 1e-3
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


@PROBLEM_TYPES
def test_splits_change_nothing(make_trainer, problem_type):
    """With the pointwise losses too. Micro-batches have different numbers of pairs."""

    def step(size):
        teacher, student = make_pair(problem_type)
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        names = ["margin", "listwise", "kl", "task", "cos"]
        options = {"data_collator": collate, **ALL, **split}
        return one_step_of(make_trainer, student, teacher, make_groups(), names, **options)

    whole = step(8)
    for size in (4, 2, 1):
        assert_equal_steps(step(size), whole)


def test_two_processes_change_nothing(make_trainer, tmp_path):
    """Each has two micro-batches of two queries."""
    run = run_on_two_processes([Path(__file__).with_name("groups_on_processes.py"), tmp_path])
    assert (tmp_path / "result.json").exists(), run.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["num_processes"], result["wrapper"]) == (2, "DistributedDataParallel")
    teacher, student = make_pair()
    names, options = result["names"], {"data_collator": collate, **ALL}
    assert set(names) == {"margin", "listwise", "kl", "task", "cos"}
    whole = one_step_of(make_trainer, student, teacher, make_groups(), names, **options)
    assert_equal_steps((result["losses"], torch.tensor(result["gradient"])), whole)

    alone = make_ranker(make_trainer, None, **ALL).predict(make_groups()[1:])
    for name in ("loss", *(f"loss_{name}" for name in names)):
        assert result["metrics"][f"test_{name}"] == pytest.approx(alone.metrics[f"test_{name}"], rel=1e-6)
    for own, other in ((result["predictions"], alone.predictions), (result["labels"], alone.label_ids)):
        np.testing.assert_allclose(own, other, atol=1e-6)


@pytest.mark.parametrize("loss", [MarginLoss(), ListwiseLoss()], ids=["margin", "listwise"])
def test_check_split_invariance(loss):
    teacher, student = make_pair()
    options = {"model": student, "teacher_model": teacher, "train_dataset": make_groups(), "data_collator": collate}
    assert check_split_invariance(loss, **options).parts == (2, 4, 8)


def test_padding_changes_nothing(make_trainer):
    trainer = make_ranker(make_trainer, make_groups(), **ALL)
    short = trainer.evaluate()

    def collate_wider(rows):
        batch = collate(rows)
        labels = torch.nn.functional.pad(batch.pop("labels"), (0, 3), value=1.0)  # no candidate, so no label either
        return {**{name: torch.nn.functional.pad(ids, (0, 5, 0, 3)) for name, ids in batch.items()}, "labels": labels}

    trainer.data_collator = collate_wider
    wide = trainer.evaluate()
    names = [f"eval_loss_{name}" for name in ("margin", "listwise", "kl", "task", "cos")]
    assert [wide[name] for name in names] == pytest.approx([short[name] for name in names], rel=1e-5)


def test_groups_are_never_split(make_trainer, monkeypatch):
    """Not even where losses over logits get a few positions at a time."""
    whole = make_ranker(make_trainer, make_groups()).evaluate()
    monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", 3)
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS_ON_CPU", 2)
    in_pieces = make_ranker(make_trainer, make_groups()).evaluate()
    for name in ("eval_loss_margin", "eval_loss_listwise"):
        assert in_pieces[name] == whole[name]


@PROBLEM_TYPES
def test_a_resume_ends_in_the_same_weights(make_trainer, problem_type, tmp_path):
    rows = Dataset.from_list(make_groups())
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    arguments |= {"learning_rate": 1e-2, "train_sampling_strategy": "random"}
    trainer = make_ranker(make_trainer, rows, problem_type, **arguments)
    trainer.train()
    expected = copy.deepcopy(trainer.model.state_dict())
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = make_ranker(make_trainer, rows, problem_type, **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


@PROBLEM_TYPES
def test_stored_targets_teach_the_same(make_trainer, problem_type):
    """The scores of all candidates of a row, and their hidden states for the cosine."""
    teacher, _ = make_pair(problem_type)
    rows = Dataset.from_list(make_groups())
    options = {"hidden_states": True, "batch_size": 3}
    with_targets = add_teacher_targets(rows, teacher, make_pair_tokenizer(), **options)
    for stored, row in zip(with_targets["teacher_logits"], make_groups(), strict=True):
        np.testing.assert_allclose(stored, scores_of(teacher, row), atol=1e-5)
    names = ["margin", "listwise", "kl", "task", "cos"]

    def step(teacher, rows):
        _, student = make_pair(problem_type)
        return one_step_of(make_trainer, student, teacher, rows, names, data_collator=collate, **ALL)

    live, stored = step(make_pair(problem_type)[0], rows), step(None, with_targets)
    assert stored[0] == pytest.approx(live[0], rel=1e-4)
    assert (stored[1] - live[1]).norm() < 1e-3 * live[1].norm()
    exact = {**ALL, "alpha_cos": 0.0}

    def exactly(teacher, rows):
        _, student = make_pair(problem_type)
        return one_step_of(make_trainer, student, teacher, rows, names[:4], data_collator=collate, **exact)

    assert_equal_steps(exactly(None, with_targets), exactly(make_pair(problem_type)[0], rows))


def test_several_stored_teachers(make_trainer):
    """Joined targets are the mean of the live teachers."""
    teachers = [make_pair()[0], make_model("bert", "classification", seed=3, num_labels=1, problem_type="regression")]
    rows = Dataset.from_list(make_groups())
    joined = join_teacher_targets([add_teacher_targets(rows, own, make_pair_tokenizer()) for own in teachers])

    def evaluated(teacher, rows):
        options = {"eval_rows": rows, "data_collator": collate, **BOTH, "teacher_mean": "logits"}
        return make_trainer(make_pair()[1], teacher, None, **options).evaluate()

    live, stored = evaluated(teachers, rows), evaluated(None, joined)
    assert stored["eval_loss_margin"] == pytest.approx(live["eval_loss_margin"], rel=1e-5)
    weighted = rows.add_column("votes", [[1.0, index / 7] for index in range(8)])
    options = {"eval_rows": weighted, "data_collator": collate, **BOTH, "teacher_weights_column": "votes"}
    loss = make_trainer(make_pair()[1], teachers, None, **options).evaluate()["eval_loss_margin"]
    items = [
        margins(
            scores_of(make_pair()[1], row),
            (scores_of(teachers[0], row) + index / 7 * scores_of(teachers[1], row)) / (1 + index / 7),
            row["labels"],
        )
        for index, row in enumerate(make_groups())
    ]
    assert loss == pytest.approx(np.concatenate(items).mean(), rel=1e-5)


def test_predictions_are_in_rows(make_trainer):
    """For the metrics: `[rows, candidates]`, also without labels that a loss needs."""
    rows = make_groups()
    for without in ((), ("labels",)):
        given = [{name: value for name, value in row.items() if name not in without} for row in rows]
        trainer = make_ranker(make_trainer, rows, per_device_eval_batch_size=3)
        predictions = trainer.predict(given).predictions
        most = max(len(row["labels"]) for row in rows)
        assert predictions.shape == (8, most)
        for own, row in zip(predictions, rows, strict=True):
            count = len(row["labels"])
            np.testing.assert_allclose(own[:count], scores_of(make_pair()[1], row), atol=1e-5)
            assert (own[count:] == -100).all()


def test_unlabelled_queries_are_left_out_of_the_margins(make_trainer):
    """With the pointwise losses and the order they still count."""
    rows = make_groups()
    unknown = [{**row, "labels": [float("nan")] * len(row["labels"])} for row in make_groups(4, seed=1)]
    alone = make_ranker(make_trainer, rows).evaluate()
    both = make_ranker(make_trainer, Dataset.from_list(rows + unknown), **ALL).evaluate()
    assert both["eval_loss_margin"] == pytest.approx(alone["eval_loss_margin"], rel=1e-5)
    assert both["eval_loss_listwise"] != pytest.approx(alone["eval_loss_listwise"], rel=1e-3)


def test_a_loss_of_your_own_over_groups(make_trainer):
    """ListMLE-like: the student's log-probability of the teacher's best candidate."""

    class FirstOfTeacher(Loss):
        needs = Needs(logits=True, groups=True)

        def forward(self, student, teacher, scored):
            log_probs = scored.in_groups(student.logits[:, 0].float(), -1e30).log_softmax(1)
            first = scored.in_groups(teacher.logits[:, 0].float(), -1e30).argmax(1)
            return -log_probs.gather(1, first[:, None]).sum()

    teacher, student = make_pair()
    options = {"model": student, "teacher_model": teacher, "train_dataset": make_groups(), "data_collator": collate}
    check_split_invariance(FirstOfTeacher(), **options)
    given = {"trainer_options": {"losses": {"first": (FirstOfTeacher(), 1.0)}}, **OFF}
    with pytest.raises(ValueError, match="train_dataset, row 1: FirstOfTeacher compares the candidates of a query"):
        make_trainer(student, teacher, Dataset.from_list(make_rows("regression")), **given)


def without(rows, label):
    """The first query has no candidate with this label."""
    first, *others = rows
    labels = [1.0 - label if own == label else own for own in first["labels"]]
    return [*others, {**first, "labels": labels}]


def one_candidate(rows):
    first, *others = rows
    return [*others, {name: values[:1] for name, values in first.items()}]


ROWS_WITH_ERRORS = {
    "no relevant": ("margin", without(make_groups(), 1.0), "A query has labels, but no relevant candidate"),
    "no other": ("margin", without(make_groups(), 0.0), "A query has only relevant candidates"),
    "one candidate": ("margin", one_candidate(make_groups()), "A query has (labels|only relevant)"),
    "one to order": ("listwise", one_candidate(make_groups()), "A query has only one candidate"),
}


@pytest.mark.parametrize(("name", "rows", "message"), ROWS_WITH_ERRORS.values(), ids=ROWS_WITH_ERRORS)
def test_a_query_that_cannot_be_compared(make_trainer, name, rows, message):
    """At construction, with its row. Rows that are not known then are checked before their first forward."""
    arguments = {**OFF, f"alpha_{name}": 1.0}
    with pytest.raises(ValueError, match=f"train_dataset, row 8: {message}.* set alpha_{name}=0"):
        make_ranker(make_trainer, Dataset.from_list(rows), **arguments)
    good = Dataset.from_list(make_groups())
    with pytest.raises(ValueError, match=f"eval_dataset, row 8: {message}"):
        make_trainer(*make_pair()[::-1], good, Dataset.from_list(rows), data_collator=collate, **arguments)
    with pytest.raises(ValueError, match=f"^{message}"):
        make_ranker(make_trainer, rows, **arguments).train()


@pytest.mark.parametrize("name", ["margin", "listwise"])
def test_rows_that_are_not_grouped(make_trainer, name):
    rows, arguments = make_rows("regression"), {**OFF, f"alpha_{name}": 1.0}
    message = f"alpha_{name} compares the candidates of a query, but each row has a single one: .*encode_rankings"
    with pytest.raises(ValueError, match=f"train_dataset, row 1: {message}"):
        make_ranker(make_trainer, Dataset.from_list(rows), **arguments)
    with pytest.raises(ValueError, match=message):
        make_ranker(make_trainer, rows, **arguments).train()


@pytest.mark.parametrize("name", ["margin", "listwise"])
@pytest.mark.parametrize("head", ["classification", "multi_label", "mlm"])
def test_a_head_without_one_score(make_trainer, name, head):
    arguments = {**OFF, f"alpha_{name}": 1.0}
    with pytest.raises(ValueError, match=f"alpha_{name} compares one score for each query and document, but the Bert"):
        make_trainer(make_model("bert", head, seed=1), make_model("bert", head), make_groups(), **arguments)


def test_labels_are_needed_for_margins(make_trainer):
    """One for each candidate, and known for some query."""
    rows = make_groups()
    unlabelled = [{name: values for name, values in row.items() if name != "labels"} for row in rows]
    with pytest.raises(ValueError, match=r"have no labels, only .*, but labels are needed by alpha_margin=1\.0"):
        make_ranker(make_trainer, unlabelled).train()
    for given in (unlabelled, [{**row, "labels": [float("nan")] * len(row["labels"])} for row in rows]):
        with pytest.raises(ValueError, match="all labels are missing or unknown"):
            make_ranker(make_trainer, Dataset.from_list(given))
        trainer = make_ranker(make_trainer, Dataset.from_list(given), alpha_margin=0.0)
        assert trainer.train().training_loss > 1e-3
    for given in ([{**rows[0], "labels": [1.0]}], [{**rows[0], "labels": 1.0}]):
        with pytest.raises(ValueError, match=r"row 1 has \d candidates but 1 labels: give each candidate one"):
            make_ranker(make_trainer, Dataset.from_list(given))


def test_pointwise_losses_of_classes(make_trainer):
    """Pointwise losses work on grouped rows with several classes too."""
    rows = [{**row, "labels": [int(label) for label in row["labels"]]} for row in make_groups()]
    pairs = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for row in rows
        for ids, label in zip(row["input_ids"], row["labels"], strict=True)
    ]
    student, teacher = make_model("bert", "classification", seed=1), make_model("bert", "classification")
    grouped, flat = (
        make_trainer(student, teacher, None, own, data_collator=collate).evaluate() for own in (rows, pairs)
    )
    for name in ("eval_loss", "eval_loss_kl", "eval_loss_task", "eval_loss_cos"):
        assert grouped[name] == pytest.approx(flat[name], rel=1e-5)
