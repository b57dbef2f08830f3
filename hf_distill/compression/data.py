"""The rows of a search: training, validation rows that choose the model, and test rows that choose nothing."""

import dataclasses
import logging
from collections.abc import Hashable
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_distill.compression.settings import VALIDATION_SHARE
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.data import load_data, source_of_part
from hf_distill.tasks.task import Reading, Task

logger = logging.getLogger(__name__)

NAMED = 3
"""Rows that an error shows."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The loaded rows.

    Attributes:
        train: rows to learn from, unlabelled ones at the end.
        num_labelled: how many of them have labels.
        validation: rows that choose the model.
        test: rows that are read once, when the model is chosen.
        classes: names of the classes; None if the task has none.
    """

    train: Dataset
    num_labelled: int
    validation: Dataset
    test: Dataset
    classes: list[str] | None


def load_parts(task: Task, args: TaskArguments, reading: Reading, teacher: str) -> Parts:
    """Loads the rows. Without validation data, a quarter of the labelled training rows becomes it.

    Training rows with the same input as a validation row are left out.

    Raises:
        ValueError: if a part is missing, or if test rows are also in the other parts.
    """
    is_labelled = bool(args.train_file or args.train_split)
    has_validation = bool(args.validation_file or args.validation_split or args.validation_share)
    if not is_labelled and not (args.unlabelled_file or args.unlabelled_split):
        raise ValueError("No training data: give train_file, unlabelled_file or both.")
    if not is_labelled and not has_validation:
        raise ValueError(
            "Without labelled training data there are no rows that could choose the model: give validation_file, other "
            "rows than those of test_file."
        )
    if not has_validation:
        args = dataclasses.replace(args, validation_share=VALIDATION_SHARE)
    data, classes = load_data(task, args, reading, teacher)
    num_unlabelled = 0
    if source := source_of_part(args, "unlabelled"):
        num_unlabelled = len(task.load_unlabelled(reading=reading, classes=classes, **source))
    held_out = {*_keys(task, data["validation"])}
    train = _keys(task, data["train"])
    _check_test(task, data["test"], {*held_out, *train})
    chosen = [number for number, key in enumerate(train) if key not in held_out]
    if len(chosen) < len(train):
        logger.info("%d training rows are also validation rows: left out of the training", len(train) - len(chosen))
    num_labelled = sum(number < len(train) - num_unlabelled for number in chosen)
    return Parts(data["train"].select(chosen), num_labelled, data["validation"], data["test"], classes)


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


def _check_test(task: Task, test: Dataset, known: set[Hashable]) -> None:
    shared = [number for number, key in enumerate(_keys(task, test)) if key in known]
    if shared:
        examples = "; ".join(
            f"row {number + 1}, {task.words_of_input(test, number)[:60]!r}" for number in shared[:NAMED]
        )
        raise ValueError(
            f"{len(shared)} of {len(test)} test rows are also in the training or validation data ({examples}): remove "
            f"them from one of the two, because a share that is measured on rows that were trained on shows nothing."
        )


def _keys(task: Task, rows: Dataset) -> list[Hashable]:
    """What identifies the input of each row."""
    return [_key(own) for own in task.inputs(rows)]


def _key(value: Any) -> Hashable:
    return " ".join(value.split()) if isinstance(value, str) else Hasher.hash(value)
