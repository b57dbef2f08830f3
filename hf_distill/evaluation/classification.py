"""Metrics of a classifier's logits, compared with labels and with the teacher's logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional as F

from hf_distill.optional import optional

NO_LABEL = -100
NUM_BINS = 15
"""Number of confidence bins, as in Guo et al., 2017."""


def classification_metrics(
    logits: ArrayLike, labels: ArrayLike | None = None, teacher_logits: ArrayLike | None = None
) -> dict[str, float]:
    """Measures the quality of a classifier with one label per row, and how closely it follows its teacher.

    Args:
        logits: `[rows, classes]`, logits of the student or any other model: an array, a tensor or lists.
        labels: `[rows]`, the correct class numbers. -100 marks a row without a label, which counts only in the
            comparison with the teacher. None if no row has a label.
        teacher_logits: `[rows, classes]`, the teacher's logits on the same rows.

    Returns:
        With labels: `accuracy`; `f1`, of class 1 for two classes, else the mean over the classes that occur in labels
        or predictions (macro); `matthews_correlation`; and `expected_calibration_error`, the mean distance between
        confidence and accuracy in 15 equal bins of confidence (Guo et al., 2017, https://arxiv.org/abs/1706.04599).
        With the teacher's logits: `agreement`, the share of rows where both predict the same class; and
        `kl_to_teacher`, KL(teacher || student) in nats at temperature 1, averaged over the rows.

    Raises:
        ValueError: if shapes do not match, if logits are not finite, if a label is not a class number, or if there are
            neither labels nor teacher logits.
        ImportError: if there are labels and scikit-learn is missing.

    Example:
        >>> classification_metrics([[0.0, 2.0], [1.0, 0.0]], teacher_logits=[[0.0, 2.0], [1.0, 0.0]])
        {'agreement': 1.0, 'kl_to_teacher': 0.0}

        As `compute_metrics` of a `Trainer`:

        >>> def compute_metrics(evaluated):
        ...     return classification_metrics(evaluated.predictions, evaluated.label_ids)
    """
    student = as_logits(logits, "logits")
    scores: dict[str, float] = {}
    if labels is not None:
        labelled = labelled_rows(student, labels)
        if len(labelled[0]) > 0:
            scores |= _label_metrics(*labelled)
    if teacher_logits is not None:
        teacher = as_logits(teacher_logits, "teacher_logits")
        check_same_shape(student, teacher, "logits", "teacher_logits")
        scores |= {"agreement": agreement(student, teacher), "kl_to_teacher": kl_to_teacher(student, teacher)}
    if not scores:
        raise ValueError("Nothing to measure: give labels that are not all -100, or teacher_logits.")
    return scores


def _label_metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    predictions = logits.argmax(-1)
    average = "binary" if logits.shape[1] == 2 else "macro"
    return {
        "accuracy": (predictions == labels).double().mean().item(),
        "f1": f1(predictions.tolist(), labels.tolist(), average),
        "matthews_correlation": matthews_correlation(predictions.tolist(), labels.tolist()),
        "expected_calibration_error": calibration(logits.softmax(-1), labels).error,
    }


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Share of rows whose label is among the `k` classes with the largest logits.

    Args:
        logits: `[rows, classes]`, with more than `k` classes.
        labels: `[rows]`, the correct class numbers; -100 marks a row without a label.

    Raises:
        ImportError: if scikit-learn is missing.
    """
    metrics = optional("sklearn.metrics", "evaluation")
    student, correct = labelled_rows(as_logits(logits, "logits"), labels)
    classes = range(student.shape[1])
    return float(metrics.top_k_accuracy_score(correct.tolist(), student.numpy(), k=k, labels=list(classes)))


def f1(predictions: Sequence[int], references: Sequence[int], average: str = "binary") -> float:
    metrics = optional("sklearn.metrics", "evaluation")
    score = metrics.f1_score(references, predictions, average=average, zero_division=0)
    return float(score)


def matthews_correlation(predictions: Sequence[int], references: Sequence[int]) -> float:
    metrics = optional("sklearn.metrics", "evaluation")
    if is_constant(predictions) or is_constant(references):
        return 0.0
    return float(metrics.matthews_corrcoef(references, predictions))


def is_constant(values: Sequence[float]) -> bool:
    return len(set(values)) == 1


def agreement(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Share of rows where both predict the same class, from `[rows, classes]` logits."""
    return (student.argmax(-1) == teacher.argmax(-1)).double().mean().item()


def kl_to_teacher(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """KL(softmax(teacher) || softmax(student)) in nats, averaged over the rows of `[rows, classes]` logits."""
    return kl_of_rows(student, teacher).mean().item()


def kl_of_rows(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`[rows]`: KL(softmax(teacher) || softmax(student)) of each row in nats, from `[rows, classes]` logits."""
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return divergence.sum(-1)


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy of the rows in bins of equal width over the confidence.

    Attributes:
        num_rows: `[bins]`, number of rows in each bin.
        confidence: `[bins]`, mean probability of the predicted class; NaN in an empty bin.
        accuracy: `[bins]`, share of correct rows; NaN in an empty bin.
    """

    num_rows: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: distance between confidence and accuracy, averaged over the rows."""
        distance = (self.confidence - self.accuracy).abs().nan_to_num()
        return ((self.num_rows * distance).sum() / self.num_rows.sum()).item()


def calibration(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = NUM_BINS) -> Calibration:
    """Sorts rows into the bins of Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 5.

    The bins are (0, 1/bins], (1/bins, 2/bins], ...

    Args:
        probabilities: `[rows, classes]`, float64.
        labels: `[rows]`, class numbers.
        num_bins: number of bins.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} must be 1 or more; {NUM_BINS} is usual.")
    if len(labels) == 0:
        raise ValueError(f"No row has a label: every label is {NO_LABEL}. Calibration needs labelled rows.")
    confidence, predictions = probabilities.max(-1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    bins = torch.bucketize(confidence, edges[1:-1])

    def sums(values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(bins, values.double(), minlength=num_bins)

    num_rows = torch.bincount(bins, minlength=num_bins)
    return Calibration(num_rows, sums(confidence) / num_rows, sums(predictions == labels) / num_rows)


def as_logits(values: ArrayLike, name: str) -> torch.Tensor:
    """Converts logits to `[rows, classes]` in float64 on the CPU, and checks them."""
    logits = as_tensor(values, name, "[rows, classes]").double()
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} has the shape {list(logits.shape)}: it must be [rows, classes], with at least one row and two "
            f"classes."
        )
    bad_rows = (~logits.isfinite().all(-1)).nonzero().flatten().tolist()
    if bad_rows:
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad_rows)} of {len(logits)} rows, first in row {bad_rows[0]}: "
            f"run the model in float32 or bfloat16, or check its weights for NaN."
        )
    return logits


def as_probabilities(values: ArrayLike, name: str) -> torch.Tensor:
    """Converts probabilities to `[rows, classes]` in float64 on the CPU, and checks that each row sums to 1."""
    probabilities = as_logits(values, name)
    if probabilities.min() < 0 or (probabilities.sum(-1) - 1).abs().max() > 0.01:  # room for half precision
        raise ValueError(f"{name} must be probabilities, with rows that sum to 1. For logits, apply softmax first.")
    return probabilities


def labelled_rows(logits: torch.Tensor, labels: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects the rows whose label is not -100, from `[rows, classes]` logits or probabilities and `[rows]` labels."""
    labels = as_tensor(labels, "labels", "[rows]")
    num_rows, num_classes = logits.shape
    if labels.shape != (num_rows,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be one integer per row, [{num_rows}], but have dtype {labels.dtype} and shape "
            f"{list(labels.shape)}."
        )
    if unknown := sorted(set(labels.tolist()) - {NO_LABEL, *range(num_classes)}):
        raise ValueError(
            f"The labels {unknown[:5]} are out of range for logits with {num_classes} classes: labels must be 0 to "
            f"{num_classes - 1}, or {NO_LABEL} for a row without a label."
        )
    labelled = labels != NO_LABEL
    return logits[labelled], labels[labelled].long()


def check_same_shape(student: torch.Tensor, teacher: torch.Tensor, student_name: str, teacher_name: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{student_name} has the shape {list(student.shape)}, but {teacher_name} has {list(teacher.shape)}: both "
            f"must have the same rows and the same classes."
        )


def as_tensor(values: ArrayLike, name: str, shape: str) -> torch.Tensor:
    """Converts an array, a tensor or lists to a tensor on the CPU. `shape` is for the error."""
    if not isinstance(values, torch.Tensor):  # NumPy does not know every dtype of PyTorch
        try:
            values = torch.from_numpy(np.array(values))  # a copy: PyTorch warns about read-only arrays
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be numbers in {shape}, with rows of equal length.") from None
    return values.detach().cpu()
