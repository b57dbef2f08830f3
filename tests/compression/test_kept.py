"""The share of the teacher's quality that is kept: its interval, and how many rows it takes."""

import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.compression.kept import CORRELATED, Judge, Kept, Z, units_needed
from hf_distill.tasks.registry import task_named

CLASSIFICATION = task_named("text-classification")
READING = {"problem_type": "single_label_classification"}


def logits_of(classes):
    return [*np.eye(2, dtype=np.float32)[np.asarray(classes)]]


def make_judge(labels, teacher, metric="accuracy"):
    return Judge(CLASSIFICATION, metric, Dataset.from_dict({"labels": labels}), READING, logits_of(teacher))


def draw(rng, num_rows, teacher_right=0.85, other=0.1):
    """Labels, the classes of a teacher, and those of a student that differs from the teacher in some rows."""
    labels = rng.integers(0, 2, num_rows)
    teacher = np.where(rng.random(num_rows) < teacher_right, labels, 1 - labels)
    student = np.where(rng.random(num_rows) < other, 1 - teacher, teacher)
    return labels, teacher, student


def test_the_share_is_the_ratio_of_both_accuracies():
    judge = make_judge([0, 0, 1, 1, 1], teacher=[0, 0, 1, 1, 0])
    kept = judge.kept(logits_of([0, 1, 1, 0, 1]))
    assert (kept.value, kept.teacher_value, kept.units) == (0.6, 0.8, 5)
    assert kept.share == pytest.approx(0.75)
    assert kept.low <= kept.share <= kept.high
    assert judge.share(logits_of([0, 1, 1, 0, 1])) == pytest.approx(0.75)


def test_the_teacher_keeps_all_of_it():
    kept = make_judge([0, 1] * 50, [0, 1, 1, 0] * 25).kept(logits_of([0, 1, 1, 0] * 25))
    assert (kept.low, kept.share, kept.high) == (1, 1, 1)


def test_interval_is_that_of_the_delta_method():
    """The ratio of two means over the same rows, by its linear approximation."""
    labels, teacher, student = draw(np.random.default_rng(0), 2000)
    kept = make_judge(labels, teacher).kept(logits_of(student))
    right, of_teacher = (student == labels).astype(float), (teacher == labels).astype(float)
    error = (right - kept.share * of_teacher).std() / math.sqrt(2000) / of_teacher.mean()
    assert kept.low == pytest.approx(kept.share - Z * error, abs=0.2 * error)
    assert kept.high == pytest.approx(kept.share + Z * error, abs=0.2 * error)
    assert kept.error == pytest.approx(error, rel=0.1)


@pytest.mark.long
def test_interval_holds_the_true_share():
    """Of 200 samples, about 195 intervals hold the share that the models have in truth."""
    rng, held = np.random.default_rng(1), 0
    teacher_right, other = 0.85, 0.1
    true = (teacher_right * (1 - other) + (1 - teacher_right) * other) / teacher_right
    for _ in range(200):
        labels, teacher, student = draw(rng, 400, teacher_right, other)
        kept = make_judge(labels, teacher).kept(logits_of(student))
        held += kept.low <= true <= kept.high
    assert 186 <= held <= 199


def test_a_metric_that_is_no_mean_has_the_same_kind_of_interval(monkeypatch):
    """Recomputed on every draw: slower, and for accuracy the same as the mean over rows."""
    monkeypatch.setattr("hf_distill.compression.kept.DRAWS", 100)
    labels, teacher, student = draw(np.random.default_rng(2), 60)
    fast = make_judge(labels, teacher).kept(logits_of(student))

    class Slow(type(CLASSIFICATION)):
        def scores_of_units(self, *arguments):
            return None

    judge = Judge(Slow(), "accuracy", Dataset.from_dict({"labels": labels}), READING, logits_of(teacher))
    slow = judge.kept(logits_of(student))
    assert (slow.share, slow.low, slow.high) == pytest.approx((fast.share, fast.low, fast.high))


def test_the_teacher_is_measured_once_for_each_draw(monkeypatch):
    monkeypatch.setattr("hf_distill.compression.kept.DRAWS", 20)
    labels, teacher, student = draw(np.random.default_rng(3), 40)
    measured = []

    class Counting(type(CLASSIFICATION)):
        def scores_of_units(self, *arguments):
            return None

        def metrics(self, predictions, rows, reading, teacher=None):
            measured.append(len(predictions))
            return super().metrics(predictions, rows, reading, teacher)

    judge = Judge(Counting(), "accuracy", Dataset.from_dict({"labels": labels}), READING, logits_of(teacher))
    first = judge.kept(logits_of(student))
    assert len(measured) == 2 * 21
    assert judge.kept(logits_of(student)) == first
    assert len(measured) == 3 * 21


def test_agreement_compares_with_the_teacher_alone():
    judge = make_judge([0, 1, 0, 1], [0, 0, 0, 1], metric="agreement")
    assert judge.kept(logits_of([0, 0, 1, 1])).share == 0.75


def test_less_is_better():
    """The teacher's value divided by the model's, so that a share below 1 is worse."""

    class Losing(type(CLASSIFICATION)):
        def metrics(self, predictions, rows, reading, teacher=None):
            return {"mean_squared_error": float(np.mean([own[0] for own in predictions]))}

    rows = Dataset.from_dict({"labels": [0, 0]})
    judge = Judge(Losing(), "mean_squared_error", rows, READING, [np.array([1.0]), np.array([1.0])])
    assert judge.kept([np.array([2.0]), np.array([2.0])]).share == 0.5


def test_unknown_metric_names_those_of_the_data():
    rows = Dataset.from_dict({"labels": [0, 1]})
    judge = Judge(CLASSIFICATION, "spearmanr", rows, READING, logits_of([0, 1]))
    with pytest.raises(ValueError, match="metric='spearmanr' cannot be measured on this data, which gives accuracy"):
        judge.measure(logits_of([0, 1]))


def test_pairs_of_an_embedding_task_are_drawn_together():
    task = task_named("embedding")
    rows = Dataset.from_dict(
        {
            "text": list("abcd"),
            "role": ["text", "text", "second", "second"],
            "partners": [[], [], [0], [1]],
            "scores": [[], [], [1.0], [0.0]],
        }
    )
    assert task.units(rows).tolist() == [[0, 2], [1, 3]]
    vectors = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([1.0, 1.0])]
    scores = task.scores_of_units("cosine_to_teacher", vectors, rows, {}, [np.array([1.0, 0.0])] * 4)
    assert scores.tolist() == pytest.approx([1.0, (0 + math.sqrt(0.5)) / 2])


@given(
    share=st.floats(0.9, 1.0),
    error=st.floats(0.001, 0.02),
    units=st.integers(100, 5000),
    test_units=st.integers(100, 5000),
)
@settings(deadline=None)
def test_margin_asks_for_more_on_fewer_test_rows(share, error, units, test_units):
    kept = Kept(share, share - Z * error, share + Z * error, units, share, 1.0)
    assert kept.margin(0.9, test_units) <= kept.margin(0.9, 2 * test_units)
    assert kept.margin(0.9, test_units) == pytest.approx(kept.margin(0.95, test_units) + 0.05)


def test_margin_gives_the_test_rows_a_chance_of_four_in_five():
    """A student whose margin is 0 passes on other rows of the same number in 80% of the samples."""
    rng, keep, error, samples = np.random.default_rng(0), 0.97, 0.006, 20_000
    threshold = keep + Z * error + 0.84 * math.hypot(error, error)
    assert Kept(threshold, threshold - Z * error, 1.0, 500, 1.0, 1.0).margin(keep, 500) == pytest.approx(0)
    true = threshold + error * rng.standard_normal(samples)
    measured = true + error * rng.standard_normal(samples)
    assert (measured - Z * error >= keep).mean() == pytest.approx(0.8, abs=0.01)


def test_rows_needed():
    """With an accuracy of 85% on 1,000 rows, and 3% to lose."""
    error = math.sqrt(0.85 * 0.15 / 1000) / 0.85
    needed = units_needed(0.97, error, 1000)
    assert needed == math.ceil(1000 * (1.96 * CORRELATED * error / 0.03) ** 2) == 272
    assert units_needed(0.99, error, 1000) == pytest.approx(9 * needed, rel=0.01)


def test_error_of_the_teacher():
    labels, teacher, _ = draw(np.random.default_rng(3), 1000)
    right = (labels == teacher).mean()
    expected = math.sqrt(right * (1 - right) / 1000) / right
    assert make_judge(labels, teacher).teacher_error() == pytest.approx(expected, rel=0.2)


def test_a_ratio_of_sums_has_the_interval_of_the_recomputed_metric(monkeypatch):
    """F1 of entities, from counts of each text and by computing it again for each draw."""
    monkeypatch.setattr("hf_distill.compression.kept.DRAWS", 50)
    names = ["O", "B-LOC", "I-LOC"]
    generator = np.random.default_rng(4)
    labels = [generator.choice(3, 6).tolist() for _ in range(30)]
    own = [[names[own] if generator.random() < 0.7 else "O" for own in text] for text in labels]
    teacher = [[names[own] if generator.random() < 0.9 else "O" for own in text] for text in labels]
    rows = Dataset.from_dict({"labels": labels}).cast_column("labels", List(ClassLabel(names=names)))
    task = task_named("token-classification")
    fast = Judge(task, "f1", rows, {}, teacher).kept(own)

    class Slow(type(task)):
        def scores_of_units(self, *arguments):
            return None

    slow = Judge(Slow(), "f1", rows, {}, teacher).kept(own)
    assert (fast.share, fast.low, fast.high) == pytest.approx((slow.share, slow.low, slow.high))
    assert fast.low < fast.share < fast.high
