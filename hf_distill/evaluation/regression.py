"""Metrics of a model that predicts a number for each row."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike

from hf_distill.evaluation.classification import as_tensor, is_constant
from hf_distill.optional import optional


def regression_metrics(
    predictions: ArrayLike, labels: ArrayLike | None = None, teacher_predictions: ArrayLike | None = None
) -> dict[str, float]:
    """Measures predicted numbers, and how closely they follow the teacher's.

    Args:
        predictions: `[rows]` or `[rows, 1]`.
        labels: `[rows]`, the right numbers; NaN where unknown. None if no row has one.
        teacher_predictions: `[rows]` or `[rows, 1]`, the teacher's predictions for the same rows.

    Returns:
        With labels: `spearmanr` and `pearsonr`, the rank correlation and the linear correlation with the labels, 0
        where they are undefined; and `mean_squared_error`. With the teacher's predictions: `spearmanr_to_teacher`, and
        `mean_squared_difference`.

    Raises:
        ValueError: if the numbers of rows differ, if a prediction is not finite, or if there is nothing to compare
            with.
        ImportError: if SciPy is missing.

    Example:
        >>> regression_metrics([1.0, 2.0, 4.0], labels=[1.0, 2.0, 3.0])["spearmanr"]
        1.0
    """
    own = _as_numbers(predictions, "predictions")
    scores: dict[str, float] = {}
    if labels is not None:
        known = as_tensor(labels, "labels", "[rows]").double().reshape(-1)
        _check_rows(own, known, "labels")
        labelled = ~known.isnan()
        if labelled.any():
            own_labelled, known = own[labelled], known[labelled]
            scores["spearmanr"] = correlation("spearmanr", own_labelled.tolist(), known.tolist())
            scores["pearsonr"] = correlation("pearsonr", own_labelled.tolist(), known.tolist())
            scores["mean_squared_error"] = (own_labelled - known).square().mean().item()
    if teacher_predictions is not None:
        teacher = _as_numbers(teacher_predictions, "teacher_predictions")
        _check_rows(own, teacher, "teacher_predictions")
        scores["spearmanr_to_teacher"] = correlation("spearmanr", own.tolist(), teacher.tolist())
        scores["mean_squared_difference"] = (own - teacher).square().mean().item()
    if not scores:
        raise ValueError("Nothing to measure: give labels that are not all NaN, or teacher_predictions.")
    return scores


def correlation(name: str, one: Sequence[float], other: Sequence[float]) -> float:
    """`pearsonr` or `spearmanr` of SciPy; 0 where it is undefined, because one side is constant."""
    stats: Any = optional("scipy.stats", "evaluation")
    if is_constant(one) or is_constant(other):
        return 0.0
    return float(getattr(stats, name)(one, other).statistic)


def _as_numbers(values: ArrayLike, name: str) -> torch.Tensor:
    numbers = as_tensor(values, name, "[rows]").double()
    if numbers.numel() != len(numbers):
        raise ValueError(f"{name} have the shape {list(numbers.shape)}: they must be one number per row.")
    if not numbers.isfinite().all():
        raise ValueError(f"{name} have NaN or infinite values: check the model's weights for NaN.")
    return numbers.reshape(-1)


def _check_rows(own: torch.Tensor, other: torch.Tensor, name: str) -> None:
    if len(own) != len(other):
        raise ValueError(f"There are {len(own)} predictions, but {len(other)} {name}.")
