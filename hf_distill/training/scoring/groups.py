"""Grouped rows: one row is a query with all its candidates, and each candidate is scored by itself.

A grouped batch has `input_ids` `[rows, candidates, length]`. Where a row has fewer candidates, the rest is padding. A
model reads the candidates of all rows without that padding, `[pairs, length]`: a pair is a query with one candidate.
Micro-batches and processes hold whole rows, so a group is never split.
"""

from collections.abc import Mapping, Sequence

import torch

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.scoring.inputs import attended_positions


def is_grouped(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether each row of a batch has several candidates."""
    tokens = inputs.get("input_ids")
    return tokens is not None and tokens.ndim == 3


def candidates_of(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """True where a row has a candidate, False for padding: `[rows, candidates]`."""
    return attended_positions(inputs).any(-1)


def flattened(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with one example per pair: `[rows, candidates, length, ...]` becomes `[pairs, length, ...]`.

    Entries with fewer dimensions, such as labels, are unchanged.
    """
    candidates = candidates_of(inputs)

    def is_per_candidate(value: object) -> bool:
        return isinstance(value, torch.Tensor) and value.ndim > 2 and value.shape[:2] == candidates.shape

    return {name: value[candidates] if is_per_candidate(value) else value for name, value in inputs.items()}


def as_pairs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch that a model can read. Each candidate of grouped rows is an example, with labels `[pairs, 1]`."""
    if not is_grouped(batch):
        return dict(batch)
    labels = {"labels": batch["labels"][candidates_of(batch)].unsqueeze(1)} if "labels" in batch else {}
    return {**flattened(batch), **labels}


def regrouped(values: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The values of pairs in rows, for the metrics.

    Args:
        values: `[pairs, classes]`.
        inputs: the grouped batch.

    Returns:
        `[rows, candidates, classes]`, -100 where a row has no candidate; `[rows, candidates]` for a single class.
    """
    candidates = candidates_of(inputs)
    rows = values.new_full((*candidates.shape, *values.shape[1:]), float(IGNORE_INDEX))
    rows[candidates] = values
    return rows.squeeze(-1)


def in_groups(values: torch.Tensor, candidates: torch.Tensor, padding: float) -> torch.Tensor:
    """Puts the values of pairs into their groups.

    Args:
        values: `[pairs]`, group by group.
        candidates: `[groups, candidates]`, True where a group has a candidate.
        padding: the value where it has none.

    Returns:
        `[groups, candidates]`.
    """
    return values.new_full(candidates.shape, padding).masked_scatter(candidates, values)


def tokens_of(value: object) -> int:
    """The number of tokens of a row, which decides how much memory it needs; 0 for a single number."""
    if not hasattr(value, "__len__"):
        return 0
    if isinstance(value, Sequence) and value and isinstance(value[0], Sequence) and not isinstance(value[0], str):
        return len(value) * max(map(len, value))
    return len(value)
