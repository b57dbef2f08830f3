"""Reads rows from CSV, JSON and Parquet files, folders and the Hub, and checks their columns and texts."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_distill.data.corpus import may_be_on_the_hub, not_found
from hf_distill.data.showing import listed_rows, short

KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""Builder of `datasets` by file suffix."""


def read_rows(source: str | Path, columns: list[str], split: str, config_name: str | None) -> Dataset:
    """Reads a file, a folder or a Hub dataset, and checks that it has the columns and at least one row.

    A column such as `translation.en` is the field `en` of the column `translation`.
    """
    path = Path(source)
    if not path.exists() and not may_be_on_the_hub(str(source)):
        raise ValueError(f"File or folder not found: {source}.")
    rows = _read_file(path, columns) if path.is_file() else _load(str(source), config_name, split=split)
    if any("." in column for column in set(columns) - set(rows.column_names)):
        rows = rows.flatten()
    check_columns(rows.column_names, columns, source)
    if not len(rows):
        raise ValueError(f"{source} has no rows: give a dataset with at least one row.")
    return rows


def _read_file(file: Path, columns: list[str]) -> Dataset:
    if file.suffix not in (".csv", *KINDS):
        raise ValueError(
            f"Cannot read {file}: the file name must end in .csv, {', '.join(KINDS)}. A folder of .txt files works too."
        )
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty.")
    if file.suffix == ".csv":
        return _read_csv(file, columns)
    if KINDS[file.suffix] == "json":
        read_text(file)  # Arrow does not check that strings are valid UTF-8
    return _load(KINDS[file.suffix], data_files=str(file), split="train")


def _load(name: str, *args, **options) -> Dataset:
    try:
        return load_dataset(name, *args, **options)
    except (DatasetGenerationError, ValueError, OSError) as error:
        source = options.get("data_files", name)
        if isinstance(error, OSError) and not Path(source).exists():
            raise not_found(name, error) from error
        raise ValueError(f"Could not read {source}: {error.__cause__ or error}") from error


def _read_csv(file: Path, columns: list[str]) -> Dataset:
    """Reads columns of a CSV file as strings, with errors that name the row.

    `load_dataset("csv")` is too lenient: it fills short rows with empty cells, takes the first fields as an index if
    all rows are too long, and its errors name lines instead of rows.
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = next(reader)
            check_columns(header, columns, file)
            rows = [
                _whole(row, header, f"{file}, row {number}") for number, row in enumerate(filter(None, reader), start=1)
            ]
    except csv.Error as error:
        raise ValueError(f"Could not read {file}, line {reader.line_num}: {error}.") from None
    except UnicodeDecodeError as error:
        raise _not_text(file, error) from None
    finally:
        csv.field_size_limit(limit)
    return Dataset.from_dict({column: [row[header.index(column)] for row in rows] for column in columns})


def _whole(row: list[str], header: list[str], where: str) -> list[str]:
    if len(row) != len(header):
        raise ValueError(
            f"{where}, has {len(row)} fields, but the header has {len(header)}: put texts that contain a comma or a "
            f"line break in double quotes."
        )
    return row


def check_columns(found: Sequence[str], wanted: Sequence[str], source: str | Path) -> None:
    if missing := [column for column in wanted if column not in found]:
        shown = ", ".join(repr(column if len(column) <= 40 else f"{column[:40]}...") for column in found)
        raise ValueError(f"{source} has no column {' and no column '.join(map(repr, missing))}, only {shown}.")


def check_texts(rows: Dataset, column: str, source: str | Path) -> None:
    empty, first = [], 1
    for batch in rows.select_columns(column).iter(1000):
        for number, text in enumerate(batch[column], start=first):
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"{source}, row {number}: {short(text)} in the column {column!r} must be a string, but is "
                    f"{type(text).__name__}."
                )
            if not text or text.isspace():
                empty.append(number)
        first += len(batch[column])
    if empty:
        raise ValueError(
            f"{source} has empty texts in the column {column!r}, in {listed_rows(empty)}: remove these rows."
        )


def read_text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"File not found: {file}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(file, error) from None


def _not_text(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{file} is not valid UTF-8 text: {error.reason}. Save it as UTF-8.")
