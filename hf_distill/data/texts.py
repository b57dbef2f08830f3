"""Loads texts for classification, with or without labels, from files, folders of text and the Hub."""

import csv
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_distill.data.corpus import may_be_on_the_hub, not_found
from hf_distill.data.labels import IGNORE_INDEX

KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""Builder of `datasets` by file suffix."""

WITHOUT_LABELS = "unsup"
"""Name of the folder with unlabelled texts next to the class folders, as in aclImdb."""

SHOWN = 5
"""Number of faulty rows that an error lists."""

Label = int | str


def load_labelled_texts(
    source: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
) -> tuple[Dataset, list[str]]:
    """Loads texts with one class each, and finds the names of the classes.

    Labels are class numbers from 0, or class names. Names of a `ClassLabel` column keep their order; other names are
    sorted. With `label_names`, a label is looked up by name first, then by number.

    Args:
        source: one of: a .csv (with a header), .json, .jsonl or .parquet file; a folder with one subfolder of .txt
            files per class, such as `aclImdb/train` (its subfolder `unsup` is left out); a folder that
            `datasets.load_dataset` reads; a Hub name.
        text_column: column with the texts. Not used for folders of .txt files.
        label_column: column with the labels. Not used for folders of .txt files.
        label_names: class names in the order of their numbers, from a model or the training data. Default: the classes
            found in the source.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns `text` and `labels` (integers), and the class names in the order of their numbers.
        Plain numbers get the names `LABEL_0` and so on, as in transformers.

    Raises:
        ValueError: if a file is missing, empty or unreadable; if a column is missing; if a text is empty or not a
            string; if a label is missing, is a float (even 1.0), or is not in `label_names`; or if there are fewer than
            two classes. Rows are counted from 1, without the header.

    Example:
        >>> train, names = load_labelled_texts("reviews.csv", text_column="review", label_column="sentiment")
        >>> test, _ = load_labelled_texts("test.csv", "review", "sentiment", label_names=names)
        >>> imdb, names = load_labelled_texts("stanfordnlp/imdb", split="test")  # names: neg, pos
    """
    if _class_folders(source):
        rows, text_column, label_column = _read_class_folders(Path(source)), "text", "label"
    else:
        rows = _read(source, [text_column, label_column], split, config_name)
    _check_texts(rows, text_column, source)
    labels, own_names = _labels_of(rows, label_column, source)
    where = f"{source}, column {label_column!r}"
    if label_names is None:
        label_names = own_names or _name_classes(set(labels), where)
    numbers = _number_by_name(set(labels), own_names, list(label_names), where)
    texts = rows.select_columns(text_column)
    if text_column != "text":
        texts = texts.rename_column(text_column, "text")
    return texts.add_column("labels", [numbers[label] for label in labels]), list(label_names)


def load_unlabelled_texts(
    source: str | Path, text_column: str = "text", split: str = "train", config_name: str | None = None
) -> Dataset:
    """Loads texts without labels, for training on the teacher's predictions alone.

    Args:
        source: as in `load_labelled_texts`; or a .txt file with one text per line; or a folder of .txt files with one
            text per file. Blank lines and blank files are left out.
        text_column: column with the texts. A column with labels is ignored.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns `text` and `labels`. All labels are -100, which means no label.

    Raises:
        ValueError: if a file is missing, empty or unreadable, if the column is missing, or if a text is empty.

    Example:
        >>> reviews = load_unlabelled_texts("stanfordnlp/imdb", split="unsupervised")
    """
    path = Path(source)
    files = [path] if path.suffix == ".txt" else sorted(path.rglob("*.txt"))
    if files and (path.is_dir() or path.suffix == ".txt"):
        texts = [_read_text(file) for file in files]
        if path.suffix == ".txt":
            texts = texts[0].splitlines()
        rows = Dataset.from_dict({"text": [text.strip() for text in texts if text.strip()]})
        if not len(rows):
            raise ValueError(f"{source} contains no texts, only white space.")
    else:
        rows = _read(source, [text_column], split, config_name).select_columns(text_column)
        _check_texts(rows, text_column, source)
        if text_column != "text":
            rows = rows.rename_column(text_column, "text")
    return rows.add_column("labels", [IGNORE_INDEX] * len(rows))


def _class_folders(source: str | Path) -> list[Path]:
    """The subfolders of a folder that contain .txt files."""
    path = Path(source)
    return sorted({file.parent for file in path.glob("*/*.txt")}) if path.is_dir() else []


def _read_class_folders(folder: Path) -> Dataset:
    texts: list[str] = []
    labels: list[str] = []
    for of_class in _class_folders(folder):
        if of_class.name != WITHOUT_LABELS:
            files = sorted(of_class.glob("*.txt"))
            texts += map(_read_text, files)
            labels += [of_class.name] * len(files)
    return Dataset.from_dict({"text": texts, "label": labels})


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"File not found: {file}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(file, error) from None


def _not_text(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{file} is not valid UTF-8 text: {error.reason}. Save it as UTF-8.")


def _read(source: str | Path, columns: list[str], split: str, config_name: str | None) -> Dataset:
    """Reads a file, a folder or a Hub dataset, and checks that it has the columns and at least one row."""
    path = Path(source)
    if not path.exists() and not may_be_on_the_hub(str(source)):
        raise ValueError(f"File or folder not found: {source}.")
    rows = _read_file(path, columns) if path.is_file() else _load(str(source), config_name, split=split)
    _check_columns(rows.column_names, columns, source)
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
        _read_text(file)  # Arrow does not check that strings are valid UTF-8
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
            _check_columns(header, columns, file)
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


def _check_columns(found: Sequence[str], wanted: Sequence[str], source: str | Path) -> None:
    if missing := [column for column in wanted if column not in found]:
        shown = ", ".join(repr(column if len(column) <= 40 else f"{column[:40]}...") for column in found)
        raise ValueError(f"{source} has no column {' and no column '.join(map(repr, missing))}, only {shown}.")


def _check_texts(rows: Dataset, column: str, source: str | Path) -> None:
    empty, first = [], 1
    for batch in rows.select_columns(column).iter(1000):
        for number, text in enumerate(batch[column], start=first):
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"{source}, row {number}: {_short(text)} in the column {column!r} must be a string, but is "
                    f"{type(text).__name__}."
                )
            if not text or text.isspace():
                empty.append(number)
        first += len(batch[column])
    if empty:
        raise ValueError(f"{source} has empty texts in the column {column!r}, in {_rows(empty)}: remove these rows.")


def _labels_of(rows: Dataset, column: str, source: str | Path) -> tuple[list[Label], list[str] | None]:
    """Labels, all integers or all strings, and the class names if the column is a `ClassLabel`."""
    values, feature = list(rows[column]), rows.features[column]
    if Path(source).suffix == ".csv":
        values = _as_numbers(values)
    where = f"{source}, column {column!r}"
    is_class = isinstance(feature, ClassLabel)
    values = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [n for n, value in enumerate(values, start=1) if _is_missing(value) or (is_class and value < 0)]
    if missing:
        raise ValueError(f"{where} has no label in {_rows(missing)}: add the labels or remove these rows.")
    for number, value in enumerate(values, start=1):
        if isinstance(value, float):
            raise ValueError(
                f"{where}, row {number}: {value} is a float, not a class: use integers from 0, or class names. (pandas "
                f"turns 1 into 1.0 if labels are missing: remove those rows and use astype(int).)"
            )
        if not isinstance(value, int | str):
            raise ValueError(
                f"{where}, row {number}: {_short(value)} is not a label: give one class per text, as an integer or a "
                f"name."
            )
    if any(isinstance(value, str | bool) for value in values):
        values = [str(value) for value in values]
    return values, feature.names if is_class else None


def _as_numbers(values: list[str]) -> list[Any]:
    """Converts the strings of a CSV column to numbers, if every value that is not blank is a number."""
    try:
        return [_as_number(value) if value.strip() else None for value in values]
    except ValueError:
        return values


def _as_number(value: str) -> int | float:
    try:
        return int(value)
    except ValueError:
        return float(value)


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _name_classes(labels: set[Label], where: str) -> list[str]:
    found = sorted(labels)
    if len(found) < 2:
        raise ValueError(f"{where} has only one class, {found[0]!r}: classification needs at least two.")
    if isinstance(found[0], str):
        return list(map(str, found))
    if found != list(range(len(found))):
        raise ValueError(
            f"{where} has the labels {_listed(found)}: numeric labels must be 0 to {len(found) - 1} without gaps. Or "
            f"use names, such as 'class {found[0]}'."
        )
    return [f"LABEL_{number}" for number in found]


def _number_by_name(labels: set[Label], own_names: list[str] | None, names: list[str], where: str) -> dict[Label, int]:
    """Maps each label to the index of its class name."""
    called = {label: own_names[int(label)] if own_names else str(label) for label in labels}
    unknown: Sequence[Label] = sorted(name for name in called.values() if name not in names)
    if not unknown:
        return {label: names.index(name) for label, name in called.items()}
    names_say_nothing = names == [f"LABEL_{number}" for number in range(len(names))]
    has_numbers = not own_names or (names_say_nothing and len(own_names) == len(names))
    numbers = [label for label in labels if isinstance(label, int)]
    if has_numbers and len(numbers) == len(labels):
        unknown = sorted(number for number in numbers if not 0 <= number < len(names))
        if not unknown:
            return {number: number for number in numbers}
    raise ValueError(
        f"{where} has labels that the training data or the model does not have: {_listed(unknown)}. The classes are "
        f"{', '.join(f'{number}: {name}' for number, name in enumerate(names))}."
    )


def _rows(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    return f"{len(numbers)} rows: {_listed(numbers)}"


def _listed(values: Iterable[object]) -> str:
    values = list(values)
    return ", ".join(map(str, values[:SHOWN])) + (" and more" if len(values) > SHOWN else "")


def _short(value: object) -> str:
    return text if len(text := repr(value)) <= 40 else f"{text[:40]}..."
