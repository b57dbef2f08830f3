"""Checks before the first step that the rows of a dataset suit the losses that read groups."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, List

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.losses.base import Loss
from hf_distill.training.scoring.scored import Scored

ROWS_AT_ONCE = 1000


def check_groups(train_dataset: object, eval_dataset: object, losses: Mapping[str, Loss]) -> None:
    """Checks every row, if a loss reads groups. Streams and transformed datasets are checked later, batch by batch.

    Args:
        train_dataset: the training data.
        eval_dataset: the validation data, or several datasets by name.
        losses: the losses by name.

    Raises:
        ValueError: if rows are not grouped, if a loss cannot compare a row, or if it has nothing to compare at all.
    """
    readers = [loss for loss in losses.values() if loss.needs.groups]
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluated}.items() if readers else ():
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names and dataset.format["type"] != "custom":
            for loss in readers:
                if not _count_items(name, dataset, loss) and name == "train_dataset":
                    raise ValueError(
                        f"train_dataset has nothing to compare for the {type(loss).__name__}, because all labels are "
                        f"missing or unknown: give labels, or set its weight to 0. alpha_listwise needs no labels."
                    )


def _count_items(name: str, dataset: Dataset, loss: Loss) -> int:
    """The items of a loss in a dataset. An error names the row."""
    total = 0
    for start, scored in _scored(name, dataset, loss.needs.labels):
        try:
            total += int(loss.items(scored))
        except ValueError:
            for index, row in enumerate(_rows_of(scored), start=1):
                try:
                    loss.items(row)
                except ValueError as error:
                    raise ValueError(f"{name}, row {start + index}: {error}") from None
            raise
    return total


def _scored(name: str, dataset: Dataset, with_labels: bool) -> Iterator[tuple[int, Scored]]:
    """For each thousand rows, the number of rows before them, and their candidates and labels."""
    columns = ["input_ids", *(["labels"] if with_labels and "labels" in dataset.column_names else [])]
    is_nested = isinstance(getattr(dataset.features["input_ids"], "feature", None), List)
    rows: Any = dataset.select_columns(columns).with_format("arrow")
    for number, table in enumerate(rows.iter(ROWS_AT_ONCE)):
        counts = pc.list_value_length(table["input_ids"]).to_numpy() if is_nested else np.ones(len(table), dtype=int)
        labels = None
        if is_nested and "labels" in table.column_names:
            labels = [np.array(row, dtype=np.float32).reshape(-1) for row in table["labels"].to_pylist()]
            for row, (own, count) in enumerate(zip(labels, counts.tolist(), strict=True), start=1):
                if len(own) != count:
                    raise ValueError(
                        f"{name}, row {number * ROWS_AT_ONCE + row} has {count} candidates but {len(own)} labels: "
                        f"give each candidate one label."
                    )
        yield number * ROWS_AT_ONCE, _as_scored(counts, labels, is_nested)


def _as_scored(counts: np.ndarray, labels_of_rows: list[np.ndarray] | None, is_nested: bool) -> Scored:
    candidates = torch.arange(int(counts.max())) < torch.tensor(counts.tolist()).unsqueeze(1)
    positions = torch.ones(int(counts.sum()), dtype=torch.bool)
    labels = None
    if labels_of_rows is not None:
        labels = torch.from_numpy(np.concatenate(labels_of_rows)).unsqueeze(1)
    labelled = positions if labels is None else labels.ne(IGNORE_INDEX) & ~labels.isnan()
    return Scored(positions[:, None], positions, labelled, labels, candidates=candidates if is_nested else None)


def _rows_of(scored: Scored) -> Iterator[Scored]:
    """Each row by itself."""
    if scored.candidates is None:
        yield scored
        return
    begin = 0
    for candidates in scored.candidates:
        own = slice(begin, begin := begin + int(candidates.sum()))
        labels = None if scored.labels is None else scored.labels[own]
        positions = scored.positions[own]
        yield Scored(scored.attended[own], positions, scored.labelled[own], labels, candidates=candidates[None])
