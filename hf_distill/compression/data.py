"""The rows of a search: training, validation rows that choose the model, and test rows that choose nothing."""

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher

from hf_distill.compression.settings import VALIDATION_SHARE
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.data import SPLIT_SEED, load_data, source_of_part
from hf_distill.tasks.task import Reading, Task

NAMED = 3
"""Rows that an error shows."""

VARIANTS = 3
"""Most variants of each labelled text."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The loaded rows.

    Attributes:
        train: rows to learn from: those with labels, their variants, and other rows.
        num_labelled: how many of them have labels.
        num_variants: how many of them are variants of those.
        validation: rows that choose the model.
        test: rows that are read once, when the model is chosen.
        classes: names of the classes; None if the task has none.
    """

    train: Dataset
    num_labelled: int
    validation: Dataset
    test: Dataset
    classes: list[str] | None
    num_variants: int = 0

    @property
    def num_similar(self) -> int:
        """How many rows have labels or are variants of such rows."""
        return self.num_labelled + self.num_variants


def load_parts(task: Task, args: TaskArguments, reading: Reading, teacher: str) -> Parts:
    """Loads the rows. Without validation data, a part of the test rows becomes it.

    It is not a part of the training rows, because the teacher was probably trained on those: it would be better on them
    than on other rows, and every student would seem to keep less than it does.

    Raises:
        ValueError: if a part is missing, or if test or validation rows are also training rows.
    """
    if not (args.train_file or args.train_split or args.unlabelled_file or args.unlabelled_split):
        raise ValueError("No training data: give train_file, unlabelled_file or both.")
    data, classes = load_data(task, args, reading, teacher)
    if "validation" not in data:
        halves = task.hold_out(data["test"], VALIDATION_SHARE, SPLIT_SEED)
        data |= {"test": halves["train"], "validation": halves["test"]}
    train = {*_keys(task, data["train"])}
    _check_apart(task, data["validation"], train, "validation rows are also training rows")
    held_out = {*_keys(task, data["validation"])}
    _check_apart(task, data["test"], train | held_out, "test rows are also training or validation rows")
    num_unlabelled = 0
    if source := source_of_part(args, "unlabelled"):
        num_unlabelled = len(task.load_unlabelled(reading=reading, classes=classes, **source))
    num_labelled = len(data["train"]) - num_unlabelled
    return Parts(data["train"], num_labelled, data["validation"], data["test"], classes)


def without_some_unlabelled(parts: Parts, most: int) -> Parts:
    """At most this many training rows: all labelled ones, and of the others as many as fit, drawn at random.

    Labelled rows are never left out, so there may be more.
    """
    if len(parts.train) <= most:
        return parts
    others = np.arange(parts.num_labelled, len(parts.train))
    drawn = np.random.default_rng(0).permutation(others)[: max(0, most - parts.num_labelled)]
    kept = [*range(parts.num_labelled), *sorted(drawn.tolist())]
    return dataclasses.replace(parts, train=parts.train.select(kept))


def with_variants(parts: Parts, task: Task, reading: Reading, most: int) -> Parts:
    """Adds variants of the labelled rows, if the task has any, and leaves out unlabelled rows that are too many then.

    Unlabelled rows may be of another kind than those that are measured, so variants get half of their room.

    Args:
        parts: rows without variants.
        task: the task.
        reading: how its rows are read.
        most: how many rows may be read. Labelled rows are never left out, so there may be more.
    """
    room = max(0, most - parts.num_labelled)
    has_others = len(parts.train) > parts.num_labelled
    number = min(VARIANTS * parts.num_labelled, room // 2 if has_others else room)
    drawn = np.resize(np.random.default_rng(0).permutation(parts.num_labelled), number)
    variants = task.variants(parts.train.select(drawn), reading, parts.classes) if number else None
    if not variants:
        return without_some_unlabelled(parts, most)
    parts = without_some_unlabelled(parts, most - len(variants))
    rows = [parts.train.take(parts.num_labelled), variants]
    if others := range(parts.num_labelled, len(parts.train)):
        rows.append(parts.train.select(others))
    return dataclasses.replace(parts, train=concatenate_datasets(rows), num_variants=len(variants))


def _check_apart(task: Task, rows: Dataset, known: set[Hashable], what: str) -> None:
    shared = [number for number, key in enumerate(_keys(task, rows)) if key in known]
    if shared:
        examples = "; ".join(f"{task.words_of_input(rows, number)[:60]!r}" for number in shared[:NAMED])
        raise ValueError(
            f"{len(shared)} of {len(rows)} {what}, such as {examples}: remove them from one of the files, because a "
            f"share that is measured on rows that were trained on shows nothing."
        )


def _keys(task: Task, rows: Dataset) -> list[Hashable]:
    """What identifies the input of each row."""
    return [_key(own) for own in task.inputs(rows)]


def _key(value: Any) -> Hashable:
    return " ".join(value.split()) if isinstance(value, str) else Hasher.hash(value)
