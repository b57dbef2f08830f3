"""Metrics of several classes per row, and of numbers, against scikit-learn, SciPy and values by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from hf_distill.evaluation.multi_label import multi_label_metrics
from hf_distill.evaluation.regression import regression_metrics


def test_quality():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 2, size=(40, 5)).astype(float)
    labels[3, 2] = -100
    known = np.delete(labels, 3, axis=0), np.delete(logits, 3, axis=0) > 0
    found = multi_label_metrics(logits, labels)
    per_class = [f1_score(right, own) for right, own in zip(known[0].T, known[1].T, strict=True)]
    assert found["f1_macro"] == pytest.approx(np.mean(per_class))
    assert found["f1_micro"] == pytest.approx(f1_score(known[0].ravel(), known[1].ravel()))
    assert found["exact_match"] == pytest.approx((known[0] == known[1]).all(-1).mean())


def test_fidelity():
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    one, other = (1 / (1 + np.exp(-values)) for values in (teacher, student))
    expected = one * np.log(one / other) + (1 - one) * np.log((1 - one) / (1 - other))
    found = multi_label_metrics(torch.tensor(student), teacher_logits=torch.tensor(teacher))
    assert found["kl_to_teacher"] == pytest.approx(expected.mean())
    assert found["agreement"] == pytest.approx(((student > 0) == (teacher > 0)).mean())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give labels that are not all -100, or teacher_logits"),
        ({"labels": [[-100, -100]]}, "give labels that are not all -100"),
        ({"labels": [[2, 0]]}, "labels must be 1 for each class"),
        ({"labels": [1]}, r"labels have the shape \[1\], but logits have \[1, 2\]"),
        ({"teacher_logits": [[1.0, 2.0, 3.0]]}, "teacher_logits"),
    ],
)
def test_what_cannot_be_measured(given, message):
    with pytest.raises(ValueError, match=message):
        multi_label_metrics([[0.5, -0.5]], **given)


def test_numbers():
    found = regression_metrics([[1.0], [2.0], [4.0], [9.0]], [1.0, 2.0, 3.0, math.nan], [2.0, 3.0, 1.0, 9.0])
    assert found["spearmanr"] == 1.0
    assert found["pearsonr"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1])
    assert found["mean_squared_error"] == pytest.approx(1 / 3)
    ranks = np.corrcoef([1, 2, 3, 4], [2, 3, 1, 4])[0, 1]
    assert found["spearmanr_to_teacher"] == pytest.approx(ranks)
    assert found["mean_squared_difference"] == pytest.approx((1 + 1 + 9 + 0) / 4)


def test_a_constant_prediction_has_no_correlation():
    assert regression_metrics([1.0, 1.0], [1.0, 2.0])["pearsonr"] == 0.0


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([1.0], None, "give labels that are not all NaN"),
        ([1.0], [math.nan], "give labels that are not all NaN"),
        ([1.0], [1.0, 2.0], "There are 1 predictions, but 2 labels"),
        ([math.inf], [1.0], "NaN or infinite"),
        ([[1.0, 2.0]], [1.0], "one number per row"),
    ],
)
def test_numbers_that_cannot_be_measured(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(predictions, labels)
