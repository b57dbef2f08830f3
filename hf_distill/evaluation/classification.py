"""How good a classifier's logits are: beside labels, and beside its teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional as F

from hf_distill.optional import optional

NO_LABEL = -100
NUM_BINS = 15
"""As in Guo et al., 2017."""


def classification_metrics(
    logits: ArrayLike, labels: ArrayLike | None = None, teacher_logits: ArrayLike | None = None
) -> dict[str, float]:
    """How good a classifier with one label per row is, and how near to its teacher.

    Args:
        logits: `[rows, classes]`, the student's, or those of any model: an array, a tensor or lists.
        labels: `[rows]`, the numbers of the right classes. Rows with -100 have none: only the teacher's metrics count
            them. None if no row has one.
        teacher_logits: `[rows, classes]`, the teacher's on the same rows.

    Returns:
        With labels: `accuracy`; `f1`, of class 1 where there are two classes, else the mean over the classes that
        occur in labels or predictions (macro); `matthews_correlation`; and `expected_calibration_error`, the mean
        distance of confidence from accuracy in 15 equal bins of confidence (Guo et al., 2017,
        https://arxiv.org/abs/1706.04599). With the teacher's logits: `agreement`, the share of rows where both say
        the same class; and `kl_to_teacher`, the mean over the rows of KL(teacher || student) in nats, at
        temperature 1.

    Raises:
        ValueError: if shapes do not fit, if logits are not finite, if a label is no class, or if there is neither a
            label nor a teacher.
        ImportError: with labels, without scikit-learn.

    Example:
        >>> classification_metrics([[0.0, 2.0], [1.0, 0.0]], teacher_logits=[[0.0, 2.0], [1.0, 0.0]])
        {'agreement': 1.0, 'kl_to_teacher': 0.0}

        For `Trainer`:

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
        raise ValueError("There is nothing to measure: give labels that are not all -100, or teacher_logits.")
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
    """The share of rows where the largest of `[rows, classes]` logits is of the same class."""
    return (student.argmax(-1) == teacher.argmax(-1)).double().mean().item()


def kl_to_teacher(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """The mean over the rows of KL(softmax(teacher) || softmax(student)), in nats, from `[rows, classes]` logits."""
    return kl_of_rows(student, teacher).mean().item()


def kl_of_rows(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`[rows]`: KL(softmax(teacher) || softmax(student)) of each, in nats, from `[rows, classes]` logits."""
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return divergence.sum(-1)


@dataclass(frozen=True)
class Calibration:
    """Confidence beside accuracy, in bins of equal width over the confidence.

    Attributes:
        num_rows: `[bins]`, how many rows fell into each.
        confidence: `[bins]`, the mean probability of the class that was predicted; NaN where there are no rows.
        accuracy: `[bins]`, the share of rows that were right; NaN where there are no rows.
    """

    num_rows: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over the rows of the distance of confidence from accuracy."""
        distance = (self.confidence - self.accuracy).abs().nan_to_num()
        return ((self.num_rows * distance).sum() / self.num_rows.sum()).item()


def calibration(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = NUM_BINS) -> Calibration:
    """The bins of Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 5: (0, 1/bins], (1/bins, 2/bins], ...

    Args:
        probabilities: `[rows, classes]`, float64.
        labels: `[rows]`, each the number of a class.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} should be 1 or more; {NUM_BINS} is usual.")
    if len(labels) == 0:
        raise ValueError(f"There is no row with a label (other than {NO_LABEL}) to compare confidence with.")
    confidence, predictions = probabilities.max(-1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    bins = torch.bucketize(confidence, edges[1:-1])

    def sums(values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(bins, values.double(), minlength=num_bins)

    num_rows = torch.bincount(bins, minlength=num_bins)
    return Calibration(num_rows, sums(confidence) / num_rows, sums(predictions == labels) / num_rows)


def as_logits(values: ArrayLike, name: str) -> torch.Tensor:
    """`[rows, classes]` in float64 on the CPU, checked."""
    logits = _as_tensor(values, name, "[rows, classes]").double()
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} has the shape {list(logits.shape)}: it should be [rows, classes], with a row or more, and two "
            f"classes or more."
        )
    bad_rows = (~logits.isfinite().all(-1)).nonzero().flatten().tolist()
    if bad_rows:
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad_rows)} of {len(logits)} rows, first in row {bad_rows[0]}: "
            f"run the model in float32 or bfloat16, or look at its weights."
        )
    return logits


def as_probabilities(values: ArrayLike, name: str) -> torch.Tensor:
    """`[rows, classes]` in float64 on the CPU, each row from 0 to 1 and with a sum of 1."""
    probabilities = as_logits(values, name)
    if probabilities.min() < 0 or (probabilities.sum(-1) - 1).abs().max() > 0.01:  # as far as half precision is off
        raise ValueError(f"{name} should be probabilities, whose rows have a sum of 1; of logits take the softmax.")
    return probabilities


def labelled_rows(logits: torch.Tensor, labels: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `[rows, classes]` logits or probabilities and `[rows]` labels, those rows whose label is not -100."""
    labels = _as_tensor(labels, "labels", "[rows]")
    num_rows, num_classes = logits.shape
    if labels.shape != (num_rows,) or labels.is_floating_point():
        raise ValueError(
            f"There are {num_rows} rows of logits, but the labels are {labels.dtype} of the shape "
            f"{list(labels.shape)}: they should be one whole number per row."
        )
    if unknown := sorted(set(labels.tolist()) - {NO_LABEL, *range(num_classes)}):
        raise ValueError(
            f"The labels {unknown[:5]} are none of the {num_classes} classes of the logits: labels should be from 0 "
            f"to {num_classes - 1}, or {NO_LABEL} for a row without one."
        )
    labelled = labels != NO_LABEL
    return logits[labelled], labels[labelled].long()


def check_same_shape(student: torch.Tensor, teacher: torch.Tensor, student_name: str, teacher_name: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{student_name} has the shape {list(student.shape)}, but {teacher_name} {list(teacher.shape)}: both "
            f"should be of the same rows and the same classes."
        )


def _as_tensor(values: ArrayLike, name: str, shape: str) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):  # of which NumPy does not know all dtypes
        try:
            values = torch.from_numpy(np.array(values))  # a copy, as PyTorch warns of arrays that are read-only
        except (TypeError, ValueError):
            raise ValueError(f"{name} should be numbers in {shape}, with no row longer than another.") from None
    return values.detach().cpu()
