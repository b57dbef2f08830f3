"""Reads the labels of a classifier from a column: one class, several classes, or a number for each row."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import ClassLabel, Dataset

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.showing import listed, listed_rows, short

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What a label is, as `problem_type` in the configs of transformers: a class, any number of classes, or a number."""

SINGLE, SEVERAL, NUMBER = get_args(ProblemType)

SEPARATOR = "|"
"""Between the classes of one row in a text cell, as in `sad|angry`."""

Label = int | str


def read_labels(
    rows: Dataset,
    column: str,
    source: str | Path,
    label_names: Sequence[str] | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> tuple[list[Any], list[str]]:
    """Reads the labels of rows, and finds the names of the classes.

    Args:
        rows: the rows.
        column: the column with the labels.
        source: file, folder or Hub name of the rows, for errors. The cells of a .csv file are strings.
        label_names: class names in the order of their numbers. Default: the classes found in the column.
        problem_type: what a label is.

    Returns:
        One label per row, and the class names in the order of their numbers. A label is a class number; for
        `"multi_label_classification"`, a list with 1.0 for each class of the row and 0.0 for the others; for
        `"regression"`, a float, and the only class name is `LABEL_0`.

    Raises:
        ValueError: if a label is missing or is not what `problem_type` says, if it is not in `label_names`, or if
            there are fewer than two classes. Rows are counted from 1.
    """
    if problem_type not in get_args(ProblemType):
        raise ValueError(f"problem_type={problem_type!r} must be one of {', '.join(get_args(ProblemType))}.")
    where = f"{source}, column {column!r}"
    if problem_type == NUMBER:
        return _numbers(rows, column, source, where), ["LABEL_0"]
    if problem_type == SEVERAL:
        sets, own_names = _class_sets(rows, column, source, where)
        found = {label for own in sets for label in own}
        label_names = list(label_names or own_names or _name_classes(found, where))
        numbers = _number_by_name(found, own_names, label_names, where)
        chosen = [{numbers[label] for label in own} for own in sets]
        return [[float(number in own) for number in range(len(label_names))] for own in chosen], label_names
    labels, own_names = _classes(rows, column, source, where)
    label_names = list(label_names or own_names or _name_classes(set(labels), where))
    numbers = _number_by_name(set(labels), own_names, label_names, where)
    return [numbers[label] for label in labels], label_names


def unknown_label(problem_type: ProblemType, num_classes: int | None) -> int | float | list[float]:
    """The label of a row whose label is unknown.

    Raises:
        ValueError: for several classes per row if the number of classes is unknown.
    """
    if problem_type == NUMBER:
        return math.nan
    if problem_type == SINGLE:
        return IGNORE_INDEX
    if num_classes is None:
        raise ValueError("The classes are unknown: give labelled data or a teacher.")
    return [float(IGNORE_INDEX)] * num_classes


def _classes(rows: Dataset, column: str, source: str | Path, where: str) -> tuple[list[Label], list[str] | None]:
    """Labels, all integers or all strings, and the class names if the column is a `ClassLabel`."""
    values, feature = list(rows[column]), rows.features[column]
    if Path(source).suffix == ".csv":
        values = _as_numbers(values)
    is_class = isinstance(feature, ClassLabel)
    values = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [n for n, value in enumerate(values, start=1) if _is_missing(value) or (is_class and value < 0)]
    if missing:
        raise ValueError(f"{where} has no label in {listed_rows(missing)}: add the labels or remove these rows.")
    for number, value in enumerate(values, start=1):
        if isinstance(value, float):
            raise ValueError(
                f"{where}, row {number}: {value} is a float, not a class: use integers from 0, or class names. (pandas "
                f"turns 1 into 1.0 if labels are missing: remove those rows and use astype(int).) To predict numbers, "
                f"set problem_type=regression."
            )
        if isinstance(value, list):
            raise ValueError(
                f"{where}, row {number}: {short(value)} is a list: give one class per text, as an integer or a name. "
                f"For several classes per text, set problem_type=multi_label_classification."
            )
        if not isinstance(value, int | str):
            raise ValueError(
                f"{where}, row {number}: {short(value)} is not a label: give one class per text, as an integer or a "
                f"name."
            )
    return _alike(values), feature.names if is_class else None


def _class_sets(
    rows: Dataset, column: str, source: str | Path, where: str
) -> tuple[list[list[Label]], list[str] | None]:
    """The classes of each row, all integers or all strings, and the class names if the column has `ClassLabel`s."""
    feature = getattr(rows.features[column], "feature", rows.features[column])
    sets: list[list[Any]] = []
    for number, value in enumerate(rows[column], start=1):
        if isinstance(value, str):
            value = [own.strip() for own in value.split(SEPARATOR) if own.strip()]
        if not isinstance(value, list):
            what = "no label" if value is None else f"{short(value)}, which is not a list of classes"
            raise ValueError(
                f"{where}, row {number} has {what}: give a list of classes, or their names separated by {SEPARATOR}. "
                f"A row without any class has an empty list or an empty cell."
            )
        for own in value:
            if isinstance(own, bool) or not isinstance(own, int | str) or own == "":
                raise ValueError(f"{where}, row {number}: {short(own)} is not a class: use integers from 0, or names.")
        if len(set(value)) < len(value):
            raise ValueError(f"{where}, row {number}: {short(value)} has a class twice.")
        sets.append(value)
    if Path(source).suffix == ".csv":
        flat = _as_numbers([own for value in sets for own in value])
    else:
        flat = _alike([own for value in sets for own in value])
    values = iter(flat)
    return [[next(values) for _ in own] for own in sets], feature.names if isinstance(feature, ClassLabel) else None


def _numbers(rows: Dataset, column: str, source: str | Path, where: str) -> list[float]:
    values = list(rows[column])
    if Path(source).suffix == ".csv":
        values = [_number_or_text(value) for value in values]
    missing = [number for number, value in enumerate(values, start=1) if _is_missing(value)]
    if missing:
        raise ValueError(f"{where} has no number in {listed_rows(missing)}: add the numbers or remove these rows.")
    for number, value in enumerate(values, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{where}, row {number}: {short(value)} is not a number, which regression needs.")
    return [float(value) for value in values]


def _alike(values: list[Any]) -> list[Any]:
    return [str(value) for value in values] if any(isinstance(value, str | bool) for value in values) else values


def _as_numbers(values: list[str]) -> list[Any]:
    """Converts the strings of a CSV column to numbers, if every value that is not blank is a number."""
    try:
        return [_as_number(value) if value.strip() else None for value in values]
    except ValueError:
        return values


def _number_or_text(value: str) -> int | float | str | None:
    try:
        return _as_number(value) if value.strip() else None
    except ValueError:
        return value


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
            f"{where} has the labels {listed(found)}: numeric labels must be 0 to {len(found) - 1} without gaps. Or "
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
        f"{where} has labels that the training data or the model does not have: {listed(unknown)}. The classes are "
        f"{', '.join(f'{number}: {name}' for number, name in enumerate(names))}."
    )
