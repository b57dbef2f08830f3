"""Each metric against a second implementation, and in the conditions that `Trainer` and launchers put it in."""

import doctest
import multiprocessing
import sys

import evaluate
import numpy as np
import pytest

from hf_distill import glue_metric
from hf_distill.evaluation import metrics
from hf_distill.evaluation.metrics import F1, GLUE_METRICS, Accuracy, MatthewsCorrelation, Pearsonr, Spearmanr

PREDICTIONS = [1, 1, 0, 0, 1, 0, 1, 1]
REFERENCES = [1, 0, 0, 1, 1, 0, 0, 1]
# true positives, false positives, false negatives, true negatives
TP, FP, FN, TN = 3, 2, 1, 2

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
    assert Accuracy().compute(predictions=[0, 1, 2, 2], references=[0, 2, 1, 2]) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="multiclass"):
        F1().compute(predictions=[0, 1, 2], references=[0, 1, 1])


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
    with pytest.raises(ValueError, match=r"no GLUE task 'squad': the tasks are cola, sst2"):
        glue_metric("squad")


def test_in_two_processes():
    """F1 is no mean of the processes' own: process 0 has it of all rows."""
    options = {"num_process": 2, "experiment_id": "two"}

    def second_half() -> None:
        metric = glue_metric("qqp", process_id=1, **options)
        assert metric.compute(predictions=PREDICTIONS[4:], references=REFERENCES[4:]) is None

    other = multiprocessing.get_context("fork").Process(target=second_half)
    other.start()
    metric = glue_metric("qqp", process_id=0, **options)
    scores = metric.compute(predictions=PREDICTIONS[:4], references=REFERENCES[:4])
    other.join(timeout=60)
    assert other.exitcode == 0
    assert scores == pytest.approx({"f1": 2 / 3, "accuracy": 5 / 8})


@pytest.mark.parametrize(("module", "task"), [("sklearn", "cola"), ("scipy", "stsb")])
def test_without_scikit_learn(module, task, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs \S+: pip install 'hf_distill\[evaluation\]'"):
        glue_metric(task).compute(predictions=[0, 1], references=[0, 1])


def test_examples():
    results = doctest.testmod(metrics)
    assert results.failed == 0
    assert results.attempted >= 6
