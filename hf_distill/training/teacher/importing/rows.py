"""Reads the targets of another program: one entry per row of the dataset, from a list, a dataset or files."""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset

SUFFIXES = (".parquet", ".json", ".jsonl")

Targets: TypeAlias = Sequence[Any] | Dataset | str | os.PathLike | None
"""Where targets are: a list, a dataset, a file, a glob or a folder; None for the dataset that they are for."""


class TargetRows:
    """One entry per row of the dataset, in the order of its rows. It can be read several times.

    Args:
        dataset: the dataset that the targets are for.
        targets: where the targets are.
        column: the column that holds the entries; None if an entry is a whole row, or the only value of a row.
        on: the column of `dataset` and of `targets` that says which row a target is for; None for the same order.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if `targets` has the wrong type.
        ValueError: if the number of rows, a column or an id does not fit.
    """

    def __init__(self, dataset: Dataset, targets: Targets, column: str | None, on: str | None):
        if targets is None and on is not None:
            raise ValueError(f"on={on!r} would have no effect on columns of the dataset itself: leave it out.")
        self.column, self.on = column, on
        self.rows = _read(dataset, targets)
        if column is not None:
            self._check_column(column)
        if on is not None:
            self.rows = self._joined(dataset, on)
        elif len(self.rows) != len(dataset):
            raise ValueError(
                f"There are {len(self.rows)} targets for a dataset of {len(dataset)} rows: pass one per row, in the "
                f"order of the rows, or pass the name of a column of ids as on."
            )

    def __iter__(self) -> Iterator[Any]:
        for index, row in enumerate(self.rows):
            if self.column is not None:
                if not isinstance(row, Mapping) or self.column not in row:
                    raise ValueError(f"Row {index} of the targets has no {self.column!r}.")
                yield row[self.column]
            elif isinstance(row, Mapping):
                yield self._without_id(row)
            else:
                yield row

    def _without_id(self, row: Mapping[str, Any]) -> Any:
        """The row without its id; only the value if nothing else is left, unless it is one number by name."""
        row = {name: value for name, value in row.items() if name != self.on}
        values = list(row.values())
        is_entry = len(values) == 1 and (isinstance(self.rows, Dataset) or not isinstance(values[0], Real))
        return values[0] if is_entry else row

    def _check_column(self, column: str) -> None:
        if isinstance(self.rows, Dataset) and column not in self.rows.column_names:
            raise ValueError(f"There is no column {column!r}, only {', '.join(self.rows.column_names)}.")

    def _joined(self, dataset: Dataset, on: str) -> Sequence[Any] | Dataset:
        """The targets in the order of the dataset's rows."""
        if on not in dataset.column_names:
            raise ValueError(f"The dataset has no column on={on!r}, only {', '.join(dataset.column_names)}.")
        if isinstance(self.rows, Dataset):
            if on not in self.rows.column_names:
                raise ValueError(f"The targets have no column on={on!r}, only {', '.join(self.rows.column_names)}.")
            ids = list(self.rows.select_columns(on).with_format(None)[on])
        else:
            lacking = (index for index, row in enumerate(self.rows) if not isinstance(row, Mapping) or on not in row)
            if (first := next(lacking, None)) is not None:
                raise ValueError(f"Row {first} of the targets has no {on!r}.")
            ids = [row[on] for row in self.rows]
        index_of = _index_by_id(ids, "the targets", on)
        own = _index_by_id(list(dataset.select_columns(on).with_format(None)[on]), "the dataset", on)
        if missing := [(index, id_) for id_, index in own.items() if id_ not in index_of]:
            index, id_ = missing[0]
            raise ValueError(
                f"{len(missing)} rows of the dataset have no target, such as row {index} with {on}={id_!r}: pass "
                f"targets for all rows, or filter the dataset."
            )
        order = [index_of[id_] for id_ in own]
        return self.rows.select(order) if isinstance(self.rows, Dataset) else [self.rows[index] for index in order]


def _index_by_id(ids: list[Any], whose: str, on: str) -> dict[Any, int]:
    index_of: dict[Any, int] = {}
    for index, id_ in enumerate(ids):
        if id_ in index_of:
            raise ValueError(f"Rows {index_of[id_]} and {index} of {whose} have the same {on}={id_!r}.")
        index_of[id_] = index
    return index_of


def _read(dataset: Dataset, targets: Targets) -> Sequence[Any] | Dataset:
    if targets is None:
        return dataset.with_format(None)
    if isinstance(targets, Dataset):
        return targets.with_format(None)
    if isinstance(targets, str | os.PathLike):
        return _read_files(find_files(targets))
    if isinstance(targets, Sequence) or hasattr(targets, "tolist"):
        return targets.tolist() if hasattr(targets, "tolist") else targets
    raise TypeError(
        f"targets should be a list with one entry per row, a datasets.Dataset, or the path of {', '.join(SUFFIXES)} "
        f"files, but is a {type(targets).__name__}."
    )


def find_files(path: str | os.PathLike) -> list[Path]:
    """The files that a path, a glob or a folder names, with `data_2` before `data_10`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if they have an unknown or more than one format.
    """
    if Path(path).is_dir():
        found = [str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES]
    else:
        found = glob.glob(str(path), recursive=True)
    if not found:
        raise FileNotFoundError(f"{path} has no files of targets ({', '.join(SUFFIXES)}).")
    suffixes = {Path(name).suffix for name in found}
    if len(suffixes) > 1 or not suffixes <= {*SUFFIXES}:
        raise ValueError(
            f"The files of {path} end in {', '.join(sorted(suffixes))}: pass one of {', '.join(SUFFIXES)}."
        )
    parts = {name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)] for name in found}
    return [Path(name) for name in sorted(found, key=parts.__getitem__)]


def _read_files(files: list[Path]) -> Sequence[Any] | Dataset:
    if files[0].suffix == ".parquet":
        return Dataset.from_parquet([str(file) for file in files])
    # `datasets` would give every row the keys of all rows, which are as many as the tokens of a vocabulary.
    return [row for file in files for row in _read_json(file)]


def _read_json(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError:
            pass  # one object per line
        else:
            return rows if isinstance(rows, list) else [rows]
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} of {file} is not JSON: {error}.") from None
    return rows
