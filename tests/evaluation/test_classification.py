"""Metrics of a classifier's logits: by hand, against scikit-learn, and errors."""

import doctest
import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from transformers import EvalPrediction

from hf_distill import classification_metrics
from hf_distill.evaluation import classification

LOGITS = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], dtype=np.float32)  # predicted: 1 0 1 0
LABELS = [1, 0, 0, 0]
TEACHER_LOGITS = np.array([[0.0, 2.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
OF_LABELS = {"accuracy", "f1", "matthews_correlation", "expected_calibration_error"}
OF_TEACHER = {"agreement", "kl_to_teacher"}


def random_logits(num_rows: int, num_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=2, size=(num_rows, num_classes))


def test_by_hand():
    measured = classification_metrics(LOGITS, LABELS, TEACHER_LOGITS)
    assert measured.keys() == OF_LABELS | OF_TEACHER
    assert all(type(value) is float for value in measured.values())
    assert measured["accuracy"] == 3 / 4
    assert measured["f1"] == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert measured["matthews_correlation"] == pytest.approx((1 * 2 - 1 * 0) / math.sqrt(2 * 1 * 3 * 2))
    # Confidences in three bins: sigmoid(1), twice, right both times; sigmoid(2), right; and sigmoid(3), wrong.
    sure = [1 / (1 + math.exp(-margin)) for margin in (1, 2, 3)]
    expected = (2 * (1 - sure[0]) + (1 - sure[1]) + sure[2]) / 4
    assert measured["expected_calibration_error"] == pytest.approx(expected)
    assert measured["agreement"] == 3 / 4


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_against_scikit_learn(num_classes):
    student, teacher = random_logits(200, num_classes, seed=0), random_logits(200, num_classes, seed=1)
    labels = random_logits(200, num_classes, seed=2).argmax(-1)
    predictions = student.argmax(-1)
    probabilities = {
        name: np.exp(x) / np.exp(x).sum(-1, keepdims=True) for name, x in {"s": student, "t": teacher}.items()
    }
    divergence = (probabilities["t"] * np.log(probabilities["t"] / probabilities["s"])).sum(-1).mean()
    f1 = sklearn.metrics.f1_score(labels, predictions, average="binary" if num_classes == 2 else "macro")
    confidence, error = probabilities["s"].max(-1), 0.0
    for index in range(15):
        rows = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if rows.any():
            error += rows.mean() * abs((predictions == labels)[rows].mean() - confidence[rows].mean())
    assert classification_metrics(student, labels, teacher) == pytest.approx(
        {
            "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
            "f1": f1,
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predictions),
            "expected_calibration_error": error,
            "agreement": (predictions == teacher.argmax(-1)).mean(),
            "kl_to_teacher": divergence,
        }
    )


def test_rows_without_a_label():
    """Rows without a label are compared only with the teacher."""
    whole = classification_metrics(LOGITS, LABELS)
    logits, teacher = np.concatenate([LOGITS, [[9.0, 0.0]]]), np.concatenate([TEACHER_LOGITS, [[0.0, 9.0]]])
    measured = classification_metrics(logits, [*LABELS, -100], teacher)
    assert {name: measured[name] for name in OF_LABELS} == whole
    assert measured["agreement"] == 3 / 5
    assert classification_metrics(logits, teacher_logits=teacher).keys() == OF_TEACHER
    assert classification_metrics(logits, [-100] * 5, teacher).keys() == OF_TEACHER
    with pytest.raises(ValueError, match="Nothing to measure: give labels that are not all -100, or teacher_logits"):
        classification_metrics(logits, [-100] * 5)


@pytest.mark.filterwarnings("error")
def test_of_arrays_tensors_and_lists():
    expected = classification_metrics(LOGITS, LABELS, TEACHER_LOGITS)
    tensors = [torch.tensor(LOGITS).bfloat16(), torch.tensor(LABELS), torch.tensor(TEACHER_LOGITS).requires_grad_()]
    assert classification_metrics(*tensors) == expected  # all of these numbers are exact in bfloat16
    read_only = LOGITS.copy()
    read_only.flags.writeable = False
    assert classification_metrics(read_only, np.array(LABELS, dtype=np.int8), TEACHER_LOGITS.tolist()) == expected
    evaluated = EvalPrediction(predictions=LOGITS, label_ids=np.array(LABELS))
    assert classification_metrics(evaluated.predictions, evaluated.label_ids).keys() == OF_LABELS


@pytest.mark.filterwarnings("error")
def test_a_single_row():
    measured = classification_metrics([[0.0, 0.0, 5.0]], [2], [[0.0, 0.0, 5.0]])
    sure = math.exp(5) / (math.exp(5) + 2)
    assert measured == pytest.approx(
        {
            "accuracy": 1.0,
            "f1": 1.0,
            "matthews_correlation": 0.0,
            "expected_calibration_error": 1 - sure,
            "agreement": 1.0,
            "kl_to_teacher": 0.0,
        }
    )
    assert classification_metrics([[1.0, 0.0]], [0])["f1"] == 0.0  # there is no class 1


@pytest.mark.filterwarnings("error")
def test_a_class_that_never_occurs():
    """The last of four classes occurs in neither predictions nor labels, and does not count in the mean."""
    logits = np.eye(4)[[0, 1, 2, 2]]
    assert classification_metrics(logits, [0, 1, 2, 1])["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_huge_logits():
    measured = classification_metrics([[3e38, -3e38], [0.0, 1e4]], [0, 0], [[3e38, -3e38], [1e4, 0.0]])
    assert measured["accuracy"] == 0.5
    assert measured["expected_calibration_error"] == 0.5  # sure of both, right in one
    assert measured["kl_to_teacher"] == 1e4 / 2


def test_a_teacher_that_is_sure():
    """If the teacher is certain of one class, KL is the student's cross-entropy with that class."""
    expected = -math.log(0.25)
    measured = classification_metrics([[0.0, 0.0, 0.0, 0.0]], teacher_logits=[[1e5, 0.0, 0.0, 0.0]])
    assert measured["kl_to_teacher"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("logits", "labels", "teacher_logits", "message"),
    [
        (LOGITS, None, None, "Nothing to measure"),
        ([], [], None, r"logits has the shape \[0\]"),
        (np.empty((0, 2)), [], None, r"logits has the shape \[0, 2\]: it must be \[rows, classes\]"),
        ([[1.0], [2.0]], [0, 0], None, "at least one row and two classes"),
        (np.zeros((4, 3, 2)), LABELS, None, r"logits has the shape \[4, 3, 2\]"),
        ([[0.0, 1.0], [0.0]], [0, 1], None, r"logits must be numbers in \[rows, classes\]"),
        ([["a", "b"]], [0], None, "logits must be numbers"),
        (
            [[0.0, 1.0], [math.nan, 0.0], [math.inf, 0.0]],
            [0, 1, 1],
            None,
            "infinite values in 2 of 3 rows, first in row 1",
        ),
        (LOGITS, None, LOGITS * math.nan, "teacher_logits has NaN or infinite values in 4 of 4 rows"),
        (LOGITS, [1, 0, 0], None, r"one integer per row, \[4\], but have dtype torch.int64 and shape \[3\]"),
        (LOGITS, [0.5, 1.0, 0.0, 0.0], None, "labels must be one integer per row.* dtype torch.float64"),
        (
            LOGITS,
            [0, 1, 2, -1],
            None,
            r"labels \[-1, 2\] are out of range for logits with 2 classes: labels must be 0 to 1, or -100",
        ),
        (LOGITS, LABELS, TEACHER_LOGITS[:3], r"logits has the shape \[4, 2\], but teacher_logits has \[3, 2\]"),
        (LOGITS, None, np.zeros((4, 3)), r"but teacher_logits has \[4, 3\]: both must have the same rows"),
    ],
)
def test_what_does_not_fit(logits, labels, teacher_logits, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(logits, labels, teacher_logits)


def test_examples():
    results = doctest.testmod(classification)
    assert results.failed == 0
    assert results.attempted >= 2
