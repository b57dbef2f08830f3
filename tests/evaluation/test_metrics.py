"""Each metric against a second implementation, and as `Trainer` and launchers call it."""

import doctest
import multiprocessing
import sys
from functools import partial

import evaluate
import numpy as np
import pytest
import scipy.special
import scipy.stats

from hf_distill import glue_metric
from hf_distill.evaluation import metrics
from hf_distill.evaluation.metrics import (
    F1,
    GLUE_METRICS,
    Accuracy,
    Agreement,
    ExpectedCalibrationError,
    KLToTeacher,
    MatthewsCorrelation,
    Pearsonr,
    Spearmanr,
)

PREDICTIONS = [1, 1, 0, 0, 1, 0, 1, 1]
REFERENCES = [1, 0, 0, 1, 1, 0, 0, 1]
# true positives, false positives, false negatives, true negatives
TP, FP, FN, TN = 3, 2, 1, 2

STUDENT_LOGITS = [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.0, 1.0, 0.0]]
TEACHER_LOGITS = [[0.0, 2.0, 1.0], [2.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 0.0, 0.0], [4.0, 0.0, 2.0]]
CLASSES = [1, 0, 1, 2, 2]

SCORES = [0.5, 3.2, 2.0, 4.9, 1.0]
GOLD = [1.0, 3.0, 3.0, 5.0, 0.0]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Accuracy, {"accuracy": (TP + TN) / 8}),
        (F1, {"f1": 2 * TP / (2 * TP + FP + FN)}),
        (
            MatthewsCorrelation,
            {"matthews_correlation": (TP * TN - FP * FN) / ((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)) ** 0.5},
        ),
    ],
)
def test_classes(metric, expected):
    assert metric().compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected)


def test_correlations():
    assert Pearsonr().compute(predictions=SCORES, references=GOLD) == pytest.approx(
        {"pearsonr": np.corrcoef(SCORES, GOLD)[0, 1]}
    )
    ranks = [1, 4, 3, 5, 2], [2, 3.5, 3.5, 5, 1]  # ties share the mean of their ranks
    assert Spearmanr().compute(predictions=SCORES, references=GOLD) == pytest.approx(
        {"spearmanr": np.corrcoef(*ranks)[0, 1]}
    )


@pytest.mark.parametrize("metric", [F1, MatthewsCorrelation, Pearsonr, Spearmanr])
@pytest.mark.filterwarnings("error")
def test_a_prediction_that_is_always_the_same(metric):
    (score,) = metric().compute(predictions=[0, 0, 0], references=[0, 1, 1]).values()
    assert score == 0.0


def test_more_than_two_classes():
    predictions, references = [0, 1, 2, 2], [0, 2, 1, 2]
    assert Accuracy().compute(predictions=predictions, references=references) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="multiclass"):
        F1(keep_in_memory=True).compute(predictions=predictions, references=references)
    macro = F1().compute(predictions=predictions, references=references, average="macro")
    assert macro == pytest.approx({"f1": (1 + 0 + 0.5) / 3})


@pytest.mark.filterwarnings("error")
def test_f1_of_classes_that_are_rare():
    """A class that is only predicted counts as 0. A class that occurs nowhere does not count."""
    assert F1().compute(predictions=[0, 3], references=[0, 0], average="macro") == pytest.approx(
        {"f1": (2 / 3 + 0) / 2}
    )


def test_agreement():
    """Both predict the same class in rows 1, 2 and 4."""
    assert Agreement().compute(predictions=STUDENT_LOGITS, references=TEACHER_LOGITS) == {"agreement": 3 / 5}


def test_kl_to_teacher():
    teacher, student = (scipy.special.softmax(logits, axis=-1) for logits in (TEACHER_LOGITS, STUDENT_LOGITS))
    expected = scipy.stats.entropy(teacher, student, axis=-1).mean()
    measured = KLToTeacher().compute(predictions=STUDENT_LOGITS, references=TEACHER_LOGITS)
    assert measured == pytest.approx({"kl_to_teacher": expected})
    assert KLToTeacher().compute(predictions=TEACHER_LOGITS, references=TEACHER_LOGITS) == {"kl_to_teacher": 0.0}


def test_expected_calibration_error():
    """Two bins, by hand: one correct row up to 0.5, and three rows above it, two of them correct."""
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6], [0.9, 0.1], [0.7, 0.3]])
    expected = (abs(1 - 0.5) + abs(2 - (0.6 + 0.9 + 0.7))) / 4
    options = {"references": [0, 1, 0, 1], "num_bins": 2}
    of_probabilities = ExpectedCalibrationError().compute(predictions=probabilities, from_logits=False, **options)
    assert of_probabilities == pytest.approx({"expected_calibration_error": expected})
    of_logits = ExpectedCalibrationError().compute(predictions=5 + np.log(probabilities), **options)
    assert of_logits == pytest.approx(of_probabilities)
    with pytest.raises(ValueError, match="predictions must be probabilities, with rows that sum to 1"):
        ExpectedCalibrationError(keep_in_memory=True).compute(
            predictions=3 * probabilities, from_logits=False, **options
        )
    with pytest.raises(ValueError, match="No row has a label"):
        ExpectedCalibrationError(keep_in_memory=True).compute(predictions=probabilities, references=[-100] * 4)
    with pytest.raises(ValueError, match="num_bins=0 must be 1 or more"):
        ExpectedCalibrationError(keep_in_memory=True).compute(predictions=probabilities, references=[0] * 4, num_bins=0)


@pytest.mark.parametrize("metric", [Agreement, KLToTeacher])
def test_logits_that_do_not_fit(metric):
    with pytest.raises(ValueError, match=r"predictions has the shape \[1, 2\], but references has \[1, 3\]"):
        metric(keep_in_memory=True).compute(predictions=[[0.0, 1.0]], references=[[0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match=r"references must be numbers in \[rows, classes\]"):
        metric(keep_in_memory=True).compute(predictions=[[0.0, 1.0], [0.0, 1.0]], references=[[0.0, 1.0], [0.0]])


def test_unequal_numbers():
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        Accuracy().compute(predictions=[0, 1], references=[0, 1, 1])


@pytest.mark.parametrize("options", [{}, {"keep_in_memory": True}])
def test_in_batches_of_arrays(options):
    metric = glue_metric("mrpc", **options)
    for start in (0, 4):
        rows = slice(start, start + 4)
        metric.add_batch(predictions=np.array(PREDICTIONS[rows]), references=np.array(REFERENCES[rows]))
    assert metric.compute() == pytest.approx({"f1": 2 / 3, "accuracy": 5 / 8})


def test_the_metrics_of_each_task():
    names = {task: set(glue_metric(task).compute(predictions=[0, 1], references=[0, 1])) for task in GLUE_METRICS}
    accuracy = {"accuracy"}
    assert names == {
        "cola": {"matthews_correlation"},
        "sst2": accuracy,
        "mrpc": {"f1", "accuracy"},
        "qqp": {"f1", "accuracy"},
        "stsb": {"pearsonr", "spearmanr"},
        "mnli": accuracy,
        "qnli": accuracy,
        "rte": accuracy,
        "wnli": accuracy,
    }
    assert glue_metric("stsb").compute(predictions=SCORES, references=GOLD) == {
        **Pearsonr().compute(predictions=SCORES, references=GOLD),
        **Spearmanr().compute(predictions=SCORES, references=GOLD),
    }


def test_unknown_task():
    with pytest.raises(ValueError, match=r"Unknown GLUE task 'squad': choose one of cola, sst2"):
        glue_metric("squad")


@pytest.mark.parametrize(
    ("make", "predictions", "references", "options"),
    [
        (partial(glue_metric, "qqp"), PREDICTIONS, REFERENCES, {}),
        (F1, [0, 1, 2, 2], [0, 2, 1, 2], {"average": "macro"}),
        (Agreement, STUDENT_LOGITS, TEACHER_LOGITS, {}),
        (KLToTeacher, STUDENT_LOGITS, TEACHER_LOGITS, {}),
        (ExpectedCalibrationError, STUDENT_LOGITS, CLASSES, {"num_bins": 3}),
    ],
)
def test_in_two_processes(make, predictions, references, options):
    """Scores are not averages over processes: process 0 computes them over all rows."""
    alone = make().compute(predictions=predictions, references=references, **options)
    shared, half = {"num_process": 2, "experiment_id": "two"}, len(references) // 2

    def second_half() -> None:
        metric = make(process_id=1, **shared)
        assert metric.compute(predictions=predictions[half:], references=references[half:], **options) is None

    other = multiprocessing.get_context("fork").Process(target=second_half)
    other.start()
    metric = make(process_id=0, **shared)
    scores = metric.compute(predictions=predictions[:half], references=references[:half], **options)
    other.join(timeout=60)
    assert other.exitcode == 0
    assert scores == pytest.approx(alone)


@pytest.mark.parametrize(("module", "task"), [("sklearn", "cola"), ("scipy", "stsb")])
def test_without_scikit_learn(module, task, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"\S+ is not installed: pip install 'hf_distill\[evaluation\]'"):
        glue_metric(task).compute(predictions=[0, 1], references=[0, 1])


def test_examples():
    results = doctest.testmod(metrics)
    assert results.failed == 0
    assert results.attempted >= 13
