"""Texts to classify, with labels and without: from CSV, JSON and Parquet files, folders of text, and the Hub."""

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
"""The builder of `datasets` that reads a file."""

WITHOUT_LABELS = "unsup"
"""The folder beside those of the classes that holds texts without labels, as in aclImdb."""

SHOWN = 5
"""Of what is wrong, how many rows an error names."""

Label = int | str


def load_labelled_texts(
    source: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
) -> tuple[Dataset, list[str]]:
    """Texts with one class each, and the names of the classes.

    Labels are numbers from 0 on, or names: those of a `ClassLabel` column keep their order, others are sorted. With
    `label_names`, a label is looked up among them by name, and where it is none of them but a number, by number.

    Args:
        source: a file, .csv with a header, .json, .jsonl or .parquet; a folder with a folder of .txt files for each
            class, as `aclImdb/train` (`unsup` beside them is left out), or one that `datasets.load_dataset` reads; or a
            name on the Hub.
        text_column: the column with the texts. Not read for folders of .txt files, nor is the next.
        label_column: the column with the labels.
        label_names: the classes by number, as a model or the training data has them; by default those that are found.
        split: of a name on the Hub or of a folder that `load_dataset` reads, as there.
        config_name: which configuration of a data set on the Hub.

    Returns:
        A data set with the columns `text` and `labels`, which are integers; and the classes by number, which for plain
        numbers are called `LABEL_0` and so on, as in transformers.

    Raises:
        ValueError: if a file is missing, empty or cannot be read; if a column is missing; if a text is empty or no
            text; if a label is missing or a float, even a whole one as 1.0, or not among `label_names`; or if there are
            fewer than two classes. Rows are counted from 1, without the header.

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
    """Texts for a teacher to label.

    Args:
        source: as in `load_labelled_texts`; or a .txt file with a text on each line, or a folder of .txt files with a
            text in each. Lines and files with nothing but white space are left out.
        text_column: the column with the texts. Labels beside it are not read.
        split: as in `load_labelled_texts`, as is the next.
        config_name: which configuration of a data set on the Hub.

    Returns:
        A data set with the columns `text` and `labels`, which are all -100: none.

    Raises:
        ValueError: if a file is missing, empty or cannot be read, if the column is missing, or if a text is empty.

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
            raise ValueError(f"{source} holds no text: there is nothing but white space in it.")
    else:
        rows = _read(source, [text_column], split, config_name).select_columns(text_column)
        _check_texts(rows, text_column, source)
        if text_column != "text":
            rows = rows.rename_column(text_column, "text")
    return rows.add_column("labels", [IGNORE_INDEX] * len(rows))


def _class_folders(source: str | Path) -> list[Path]:
    """The folders of .txt files in a folder."""
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
        raise ValueError(f"There is no file {file}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(file, error) from None


def _not_text(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{file} is no UTF-8 text: {error.reason}. Save it as UTF-8.")


def _read(source: str | Path, columns: list[str], split: str, config_name: str | None) -> Dataset:
    """The rows of a file, a folder or a data set on the Hub, which has the columns and at least one row."""
    path = Path(source)
    if not path.exists() and not may_be_on_the_hub(str(source)):
        raise ValueError(f"There is no file or folder {source}.")
    rows = _read_file(path, columns) if path.is_file() else _load(str(source), config_name, split=split)
    _check_columns(rows.column_names, columns, source)
    if not len(rows):
        raise ValueError(f"{source} has no rows.")
    return rows


def _read_file(file: Path, columns: list[str]) -> Dataset:
    if file.suffix not in (".csv", *KINDS):
        raise ValueError(f"{file} should have the ending .csv, {', '.join(KINDS)}, or a folder of .txt files.")
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty.")
    if file.suffix == ".csv":
        return _read_csv(file, columns)
    if KINDS[file.suffix] == "json":
        _read_text(file)  # Arrow does not look whether strings are text
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
    """The columns as strings, and errors that name the row.

    `load_dataset("csv")` does not do: it fills rows that are too short with empty cells, takes the first fields for an
    index where all rows are too long, and names lines in place of rows.
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
            f"{where}, has {len(row)} fields where the header has {len(header)}: a text with a comma or a line break "
            f"belongs in double quotes."
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
                    f"{source}, row {number}: {_short(text)} in the column {column!r} is no text, but "
                    f"{type(text).__name__}."
                )
            if not text or text.isspace():
                empty.append(number)
        first += len(batch[column])
    if empty:
        raise ValueError(f"{source} has empty texts in the column {column!r}, in {_rows(empty)}: leave them out.")


def _labels_of(rows: Dataset, column: str, source: str | Path) -> tuple[list[Label], list[str] | None]:
    """The labels, all integers or all strings; and the names of the integers, if the column has them."""
    values, feature = list(rows[column]), rows.features[column]
    if Path(source).suffix == ".csv":
        values = _as_numbers(values)
    where = f"{source}, column {column!r}"
    is_class = isinstance(feature, ClassLabel)
    values = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [n for n, value in enumerate(values, start=1) if _is_missing(value) or (is_class and value < 0)]
    if missing:
        raise ValueError(f"{where} has no label in {_rows(missing)}: fill them in or leave these rows out.")
    for number, value in enumerate(values, start=1):
        if isinstance(value, float):
            raise ValueError(
                f"{where}, row {number}: {value} is a float, not a class: write whole numbers from 0 on, or names. "
                f"(pandas makes 1.0 of 1 where labels are missing: leave those rows out and use astype(int).)"
            )
        if not isinstance(value, int | str):
            raise ValueError(
                f"{where}, row {number}: {_short(value)} is no label: one class per text, a number or a name, belongs "
                f"there."
            )
    if any(isinstance(value, str | bool) for value in values):
        values = [str(value) for value in values]
    return values, feature.names if is_class else None


def _as_numbers(values: list[str]) -> list[Any]:
    """What a CSV file spells: numbers, if all that is not blank are some."""
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
        raise ValueError(f"{where} has one class only, {found[0]!r}: there is nothing to tell apart.")
    if isinstance(found[0], str):
        return list(map(str, found))
    if found != list(range(len(found))):
        raise ValueError(
            f"{where} has the labels {_listed(found)}: numbers should be 0 to {len(found) - 1}, each of them at least "
            f"once. Or use names, such as 'class {found[0]}'."
        )
    return [f"LABEL_{number}" for number in found]


def _number_by_name(labels: set[Label], own_names: list[str] | None, names: list[str], where: str) -> dict[Label, int]:
    """The number that each label has among the names."""
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
        f"{where} has labels that training or the model never had: {_listed(unknown)}. The classes are "
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
