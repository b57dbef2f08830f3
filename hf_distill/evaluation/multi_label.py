"""Metrics of a classifier with any number of classes for each row, from its logits."""

import torch
from numpy.typing import ArrayLike

from hf_distill.evaluation.classification import NO_LABEL, as_logits, as_tensor, check_same_shape
from hf_distill.optional import optional


def multi_label_metrics(
    logits: ArrayLike, labels: ArrayLike | None = None, teacher_logits: ArrayLike | None = None
) -> dict[str, float]:
    """Measures the quality of a classifier that says yes or no to each class, and how closely it follows its teacher.

    A class is predicted if its logit is above 0, which means a probability above one half.

    Args:
        logits: `[rows, classes]`.
        labels: `[rows, classes]`: 1 for each class of a row, 0 for the others, -100 where unknown. Rows with an unknown
            label are left out of the quality. None if no row has labels.
        teacher_logits: `[rows, classes]`, the teacher's logits on the same rows.

    Returns:
        With labels: `f1_micro`, over all decisions; `f1_macro`, the mean over the classes; and `exact_match`, the share
        of rows where all classes are right. With the teacher's logits: `agreement`, the share of decisions that are the
        same; and `kl_to_teacher`, KL(teacher || student) of a decision in nats, averaged over all decisions.

    Raises:
        ValueError: if shapes do not match, if logits are not finite, if a label is not 0, 1 or -100, or if there are
            neither labels nor teacher logits.
        ImportError: if there are labels and scikit-learn is missing.

    Example:
        >>> multi_label_metrics([[2.0, -1.0]], teacher_logits=[[2.0, 1.0]])["agreement"]
        0.5
    """
    student = as_logits(logits, "logits")
    scores: dict[str, float] = {}
    if labels is not None:
        known = as_tensor(labels, "labels", "[rows, classes]").double()
        if known.shape != student.shape:
            raise ValueError(f"labels have the shape {list(known.shape)}, but logits have {list(student.shape)}.")
        if not torch.isin(known, torch.tensor([0, 1, NO_LABEL], dtype=known.dtype)).all():
            raise ValueError(f"labels must be 1 for each class of a row, 0 for the others, or {NO_LABEL} if unknown.")
        labelled = (known != NO_LABEL).all(-1)
        if labelled.any():
            scores |= _quality(student[labelled] > 0, known[labelled] == 1)
    if teacher_logits is not None:
        teacher = as_logits(teacher_logits, "teacher_logits")
        check_same_shape(student, teacher, "logits", "teacher_logits")
        scores["agreement"] = ((student > 0) == (teacher > 0)).double().mean().item()
        scores["kl_to_teacher"] = kl_of_decisions(student, teacher).mean().item()
    if not scores:
        raise ValueError(f"Nothing to measure: give labels that are not all {NO_LABEL}, or teacher_logits.")
    return scores


def kl_of_decisions(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`[rows, classes]`: KL(teacher || student) of each yes or no in nats, from logits."""
    log, log_teacher = torch.nn.functional.logsigmoid, torch.nn.functional.logsigmoid(teacher)
    yes = teacher.sigmoid() * (log_teacher - log(student))
    return yes + (-teacher).sigmoid() * (log(-teacher) - log(-student))


def _quality(predicted: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    metrics = optional("sklearn.metrics", "evaluation")
    f1 = {
        f"f1_{average}": float(metrics.f1_score(right.numpy(), predicted.numpy(), average=average, zero_division=0))
        for average in ("micro", "macro")
    }
    return {**f1, "exact_match": (predicted == right).all(-1).double().mean().item()}
