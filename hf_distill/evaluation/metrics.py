"""Metrics with the interface of `evaluate`, without the download from the Hub that `evaluate.load` needs."""

import evaluate
import torch
from datasets import Features, List, Value

from hf_distill.evaluation.classification import (
    NUM_BINS,
    agreement,
    as_logits,
    as_probabilities,
    calibration,
    check_same_shape,
    f1,
    kl_to_teacher,
    labelled_rows,
    matthews_correlation,
)
from hf_distill.evaluation.regression import correlation
from hf_distill.optional import optional


class _Metric(evaluate.Metric):
    """A metric that compares one number per prediction with one number per reference."""

    dtype = "int64"

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value(self.dtype), "references": Value(self.dtype)})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)


class Accuracy(_Metric):
    """`accuracy`: the share of correct predictions.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
        {'accuracy': 0.75}
    """

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(optional("sklearn.metrics", "evaluation").accuracy_score(references, predictions))}


class F1(_Metric):
    """`f1`: the harmonic mean of precision and recall of class 1, for the classes 0 and 1. It is 0 if no row is
    predicted as class 1.

    For more classes, `compute(..., average="macro")` averages the F1 of every class that occurs in predictions or
    references. "micro" and "weighted" are as in scikit-learn and `evaluate.load("f1")`.

    Example:
        >>> F1().compute(predictions=[1, 1, 0, 0], references=[1, 0, 1, 0])
        {'f1': 0.5}
        >>> F1().compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2], average="macro")
        {'f1': 0.7777777777777777}
    """

    def _compute(self, predictions: list[int], references: list[int], average: str = "binary") -> dict[str, float]:
        return {"f1": f1(predictions, references, average)}


class MatthewsCorrelation(_Metric):
    """`matthews_correlation`: from -1 to 1. 0 is chance level, and the value of a constant prediction.

    Reference: Matthews, 1975, https://doi.org/10.1016/0005-2795(75)90109-9; for more than two classes, Gorodkin, 2004,
    https://doi.org/10.1016/j.compbiolchem.2004.09.006.

    Example:
        >>> MatthewsCorrelation().compute(predictions=[1, 1, 0, 0], references=[1, 1, 0, 0])
        {'matthews_correlation': 1.0}
    """

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"matthews_correlation": matthews_correlation(predictions, references)}


class Pearsonr(_Metric):
    """`pearsonr`: the Pearson correlation of predictions and references, from -1 to 1.

    It is 0, like the Matthews correlation, if predictions or references are constant and it is undefined: a NaN would
    break the choice of the best model during training.

    Example:
        >>> round(Pearsonr().compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 2.0, 3.0])["pearsonr"], 4)
        0.982
    """

    dtype = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"pearsonr": correlation("pearsonr", references, predictions)}


class Spearmanr(_Metric):
    """`spearmanr`: the Pearson correlation of the ranks, from -1 to 1. It is 0 where that is undefined.

    Example:
        >>> Spearmanr().compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 2.0, 3.0])
        {'spearmanr': 1.0}
    """

    dtype = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"spearmanr": correlation("spearmanr", references, predictions)}


class _BesideTeacher(evaluate.Metric):
    """A metric that compares the student's logits, `[rows, classes]`, with the teacher's."""

    def _info(self) -> evaluate.MetricInfo:
        logits = List(Value("float64"))
        features = Features({"predictions": logits, "references": logits})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)

    def _read(self, predictions: list[list[float]], references: list[list[float]]) -> list[torch.Tensor]:
        student, teacher = as_logits(predictions, "predictions"), as_logits(references, "references")
        check_same_shape(student, teacher, "predictions", "references")
        return [student, teacher]


class Agreement(_BesideTeacher):
    """`agreement`: the share of rows where student and teacher predict the same class, from a list of logits per row.

    Example:
        >>> Agreement().compute(predictions=[[0.0, 2.0], [1.0, 0.0]], references=[[0.0, 1.0], [0.0, 1.0]])
        {'agreement': 0.5}
    """

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return {"agreement": agreement(*self._read(predictions, references))}


class KLToTeacher(_BesideTeacher):
    """`kl_to_teacher`: KL(softmax(teacher) || softmax(student)) in nats at temperature 1, averaged over the rows.

    Example:
        >>> teacher_logits, student_logits = [[0.0, 0.0]], [[0.0, 1.0]]
        >>> round(KLToTeacher().compute(predictions=student_logits, references=teacher_logits)["kl_to_teacher"], 4)
        0.1201
    """

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return {"kl_to_teacher": kl_to_teacher(*self._read(predictions, references))}


class ExpectedCalibrationError(evaluate.Metric):
    """`expected_calibration_error`: distance between confidence and accuracy, averaged over the rows, from 0 to 1.

    Reference: Guo et al., 2017, https://arxiv.org/abs/1706.04599. Confidence is the probability of the predicted class.
    Rows are sorted by confidence into `num_bins` bins of equal width. In each bin the mean confidence is compared with
    the share of correct rows.

    Predictions are a list of logits per row, or of probabilities with `compute(..., from_logits=False)`. References are
    class numbers; rows with -100 are left out.

    Example:
        >>> probabilities = [[0.2, 0.8], [0.7, 0.3]]
        >>> error = ExpectedCalibrationError().compute(predictions=probabilities, references=[1, 0], from_logits=False)
        >>> round(error["expected_calibration_error"], 4)
        0.25
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": List(Value("float64")), "references": Value("int64")})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[int],
        num_bins: int = NUM_BINS,
        from_logits: bool = True,
    ) -> dict[str, float]:
        if from_logits:
            probabilities = as_logits(predictions, "predictions").softmax(-1)
        else:
            probabilities = as_probabilities(predictions, "predictions")
        return {"expected_calibration_error": calibration(*labelled_rows(probabilities, references), num_bins).error}


GLUE_METRICS: dict[str, tuple[type[_Metric], ...]] = {
    "cola": (MatthewsCorrelation,),
    "sst2": (Accuracy,),
    "mrpc": (F1, Accuracy),
    "qqp": (F1, Accuracy),
    "stsb": (Pearsonr, Spearmanr),
    "mnli": (Accuracy,),
    "qnli": (Accuracy,),
    "rte": (Accuracy,),
    "wnli": (Accuracy,),
}
"""Metrics by task name, as in the dataset nyu-mll/glue."""


class Glue(evaluate.Metric):
    """All metrics of one GLUE task. Created by `glue_metric`."""

    def __init__(self, config_name: str, **options):
        self._metrics = [metric() for metric in GLUE_METRICS[config_name]]
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        return self._metrics[0]._info()  # the metrics of a task all have the same dtype

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {k: v for metric in self._metrics for k, v in metric._compute(predictions, references).items()}


def glue_metric(task: str, **options) -> evaluate.Metric:
    """Returns the metrics of one of the nine GLUE tasks, like `evaluate.load("glue", task)`, but without the Hub.

    Reference: Wang et al., 2018, GLUE, https://arxiv.org/abs/1804.07461, table 1.

    Args:
        task: "cola" (Matthews correlation), "sst2", "mnli", "qnli", "rte", "wnli" (accuracy), "mrpc", "qqp" (F1 and
            accuracy) or "stsb" (Pearson and Spearman correlation). Both validation sets of MNLI are "mnli".
        **options: options of `evaluate.Metric`. If several processes hold a share of the predictions each, give
            `num_process`, `process_id` and an `experiment_id` that is the same in all: `compute` then returns the
            scores of all rows in process 0, and None in the others. `keep_in_memory=True` writes no file.

    Returns:
        A metric. Its `compute(predictions=..., references=...)` takes one number per row, a class number or for "stsb"
        a score, and returns a dict from names to floats between -1 and 1.

    Raises:
        ValueError: if the task is unknown.
        ImportError: from `compute`, if scikit-learn or SciPy is missing.

    Example:
        >>> glue_metric("mrpc").compute(predictions=[1, 1, 0, 0], references=[1, 0, 0, 0])
        {'f1': 0.6666666666666666, 'accuracy': 0.75}
    """
    if task not in GLUE_METRICS:
        raise ValueError(f"Unknown GLUE task {task!r}: choose one of {', '.join(GLUE_METRICS)}.")
    return Glue(task, **options)
