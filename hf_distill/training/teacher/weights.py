"""The weights of several teachers: the same for all rows, or a column with one list per row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_distill.training.scoring.inputs import count_examples


def fixed_weights(given: Sequence[float] | None, num_teachers: int) -> list[float]:
    """The weights of the teachers, which sum to 1.

    Args:
        given: `teacher_weights` of the training arguments; None for equal weights.
        num_teachers: the number of teachers.

    Raises:
        ValueError: if there is not one weight for each teacher.
    """
    if given is None:
        return [1 / num_teachers] * num_teachers
    if len(given) != num_teachers:
        raise ValueError(
            f"teacher_weights={list(given)} has {len(given)} weights for {num_teachers} teachers: give one for each, "
            f"in the order of the teachers."
        )
    return [weight / sum(given) for weight in given]


def check_column(name: str, dataset: Any, column: str, num_teachers: int) -> None:
    """Checks the weights of all rows of a dataset. A stream, and rows that a function makes, are checked in batches.

    Args:
        name: the trainer's argument, for the error.
        dataset: the dataset.
        column: the column of weights.
        num_teachers: the number of teachers.

    Raises:
        ValueError: if the column is missing, or if a row has no valid weights.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return
    if column not in dataset.column_names:
        raise ValueError(
            f"{name} has no column teacher_weights_column={column!r}, only {', '.join(dataset.column_names)}: add a "
            f"list of {num_teachers} weights to each row, or leave out teacher_weights_column."
        )
    for batch in dataset.with_format(None).select_columns(column).iter(batch_size=1000):
        try:
            as_weights(batch[column], num_teachers)
        except ValueError as error:
            raise ValueError(f"{name}, column {column!r}: {error}") from None


def as_weights(rows: Sequence[Sequence[float]], num_teachers: int) -> torch.Tensor:
    """Converts the weights of rows to a tensor `[rows, teachers]`. Each row is divided by its sum.

    Raises:
        ValueError: if a row does not have one number of at least 0 for each teacher, or only zeros.
    """
    for row in rows:
        values = np.array([] if row is None else row, dtype=np.float64)
        if values.shape != (num_teachers,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise ValueError(
                f"A row has the weights {row} for {num_teachers} teachers: give each row a list of {num_teachers} "
                f"numbers, each 0 or above and at least one above 0."
            )
    weights = np.array([np.asarray(row) for row in rows], dtype=np.float64)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).float()


class WeightsCollator:
    """A collator that removes the weights from rows, calls another collator, and adds the weights to its batch.

    Args:
        collator: the other collator. It never sees the weights.
        column: the column of weights.
        num_teachers: the number of teachers.

    Raises:
        ValueError: in a call, if weights are invalid, or if the batch does not have one example per row.
    """

    def __init__(self, collator: Callable[[Any], dict], column: str, num_teachers: int):
        self.collator, self.column, self.num_teachers = collator, column, num_teachers

    def __call__(self, rows: Sequence[Mapping[str, object]] | Mapping[str, Sequence]) -> dict[str, torch.Tensor]:
        weights: Any
        if isinstance(rows, Mapping):  # the dataset returns several rows as columns
            weights = rows.get(self.column)
            rest: Any = self._without(rows)
        else:
            weights = [row[self.column] for row in rows] if self.column in rows[0] else None
            rest = [self._without(row) for row in rows]
        batch = self.collator(rest)
        if weights is None:
            return batch
        if count_examples(batch) != len(weights):
            raise ValueError(
                f"The collator makes {count_examples(batch)} examples from {len(weights)} rows, so the weights in "
                f"{self.column!r} do not belong to examples: use a collator that makes one example per row, or leave "
                f"out teacher_weights_column."
            )
        return {**batch, self.column: as_weights(weights, self.num_teachers)}

    def _without(self, row: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in row.items() if name != self.column}
