"""Loads the datasets of a training, and records in a model how it reads data."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from hf_distill.lengths import READING, reading_of
from hf_distill.loading import load_config
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Reading, Task

SPLIT_SEED = 0
"""Seed of the split that `validation_share` makes: fixed, so that every training seed holds out the same rows."""

MAX_LENGTH = "max_length"
"""The reading option that a model records in its tokenizer, as `model_max_length`, not in its config."""


def load_data(
    task: Task, args: TaskArguments, reading: Reading, teacher: str | None = None
) -> tuple[dict[str, Dataset], list[str] | None]:
    """Loads the datasets named in the arguments, and finds the names of the classes.

    Class names come from the model if its head has the same classes, else from the teacher, else from the data.

    Args:
        task: loads the datasets.
        args: names the datasets.
        reading: how the task reads them.
        teacher: Hub name or folder of the teacher.

    Returns:
        The datasets by part (train, validation, test), only those given, with unlabelled rows at the end of train;
        and the names of the classes by number, None if the task has no classes.

    Raises:
        ValueError: if `task.load` raises it, or if neither data nor teacher names the classes.
    """
    classes = None
    if teacher is not None and find_adapter_config_file(teacher) is None:
        classes = task.classes_of(load_config(teacher))
    data: dict[str, Dataset] = {}
    for part in ("train", "validation", "test"):
        if source := source_of_part(args, part):
            data[part], classes = task.load(reading=reading, classes=classes, **source)
            if part == "train" and (own := _classes_of_head(task, args.model_name_or_path, classes)) != classes:
                data[part], classes = task.load(reading=reading, classes=own, **source)
    if classes is None and args.model_name_or_path is not None:
        classes = _classes_of_trained_head(task, args.model_name_or_path)
    if classes is None and task.has_classes:
        raise ValueError("The classes are unknown: give labelled data (train_file or train_split) or a teacher.")
    if args.validation_share is not None:
        parts = task.hold_out(data["train"], args.validation_share, SPLIT_SEED)
        data |= {"train": parts["train"], "validation": parts["test"]}
    if source := source_of_part(args, "unlabelled"):
        unlabelled = task.load_unlabelled(reading=reading, classes=classes, **source)
        if "train" in data:
            labelled = data["train"].column_names
            if set(labelled) != set(unlabelled.column_names):
                raise ValueError(
                    f"train has the columns {', '.join(labelled)}, but unlabelled has "
                    f"{', '.join(unlabelled.column_names)}: give both the same columns."
                )
            unlabelled = concatenate_datasets([data["train"], unlabelled.cast(data["train"].features)])
        data["train"] = unlabelled
    return data, classes


def source_of_part(args: TaskArguments, part: str) -> dict[str, Any] | None:
    if file := getattr(args, f"{part}_file"):
        return {"source": file}
    if split := getattr(args, f"{part}_split"):
        return {"source": args.dataset_name, "config_name": args.dataset_config_name, "split": split}
    return None


def name_of_part(args: TaskArguments, part: str) -> str:
    """Name of a part of the data: its file, or its Hub dataset with configuration and split."""
    parts = (part, "unlabelled") if part == "train" else (part,)
    sources = filter(None, (source_of_part(args, own) for own in parts))
    names = [", ".join(filter(None, source.values())) for source in sources]
    return " and ".join(names) or f"validation_share={args.validation_share}"


def note_reading(task: Task, reading: Reading, model: PreTrainedModel, processor: Any) -> None:
    """Records in the model how it reads data, so that it is saved: in its config, and the length in its tokenizer."""
    noted = {option: value for option, value in reading.items() if option != MAX_LENGTH}
    setattr(model.config, READING, {"task": task.name, **noted})
    if MAX_LENGTH in reading:
        processor.model_max_length = reading[MAX_LENGTH]


def noted_reading(configs: Sequence[PreTrainedConfig]) -> dict[str, Any]:
    """The record of `note_reading` from the first config that has one; empty if none has."""
    return next(filter(None, map(reading_of, configs)), {})


def reading_of_models(task: Task, configs: Sequence[PreTrainedConfig], given: Mapping[str, Any]) -> Reading:
    """How trained models read data: as given, else as recorded in the first config with a record, else the default.

    Raises:
        ValueError: if an option is given that the task does not have.
    """
    defaults, noted = task.reading_defaults(), noted_reading(configs)
    given = {option: value for option, value in given.items() if value is not None}
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(f"{task.name} has no option {', '.join(unknown)}: it has {', '.join(defaults)}.")
    reading = {option: given.get(option, noted.get(option, default)) for option, default in defaults.items()}
    return task.complete(reading, configs)


def _classes_of_trained_head(task: Task, model_name: str) -> list[str] | None:
    config = load_config(model_name)
    return task.classes_of(config) if task.has_head(config) else None


def _classes_of_head(task: Task, model_name: str | None, classes: list[str] | None) -> list[str] | None:
    """The model's class names if its head has the same classes, in any order; else `classes`."""
    if model_name is None or classes is None:
        return classes
    own, unnamed = _classes_of_trained_head(task, model_name), [f"LABEL_{number}" for number in range(len(classes))]
    if own is None:
        return classes
    fits = sorted(own) == sorted(classes) or (len(own) == len(classes) and classes == unnamed)
    return own if fits else classes
