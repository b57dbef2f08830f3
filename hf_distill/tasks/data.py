"""Loads the datasets of a training and finds the names of their classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from hf_distill.lengths import READING, Truncation
from hf_distill.loading import load_config
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Task

SPLIT_SEED = 0
"""Seed of the split that `validation_share` makes: fixed, so that every training seed holds out the same rows."""


def load_data(task: Task, args: TaskArguments, teacher: str | None = None) -> tuple[dict[str, Dataset], list[str]]:
    """Loads the datasets named in the arguments, and finds the names of the classes.

    Class names come from the model if its head has the same classes, else from the teacher, else from the data.

    Args:
        task: loads the datasets.
        args: names the datasets.
        teacher: Hub name or folder of the teacher.

    Returns:
        The datasets by part (train, validation, test), only those given, with unlabelled rows at the end of train;
        and the names of the classes by number.

    Raises:
        ValueError: if `task.load` raises it, or if neither data nor teacher names the classes.
    """
    label_names = None
    if teacher is not None and find_adapter_config_file(teacher) is None:
        label_names = label_names_of(load_config(teacher))
    data, columns = {}, task.columns_of(args)
    for part in ("train", "validation", "test"):
        if source := source_of_part(args, part):
            data[part], label_names = task.load(**source, **columns, label_names=label_names)
            if part == "train" and (own := _names_of_head(task, args.model_name_or_path, label_names)) != label_names:
                data[part], label_names = task.load(**source, **columns, label_names=own)
    if label_names is None:
        raise ValueError("The classes are unknown: give labelled data (train_file or train_split) or a teacher.")
    if args.validation_share is not None:
        parts = data["train"].train_test_split(args.validation_share, seed=SPLIT_SEED)
        data |= {"train": parts["train"], "validation": parts["test"]}
    if source := source_of_part(args, "unlabelled"):
        unlabelled = task.load_unlabelled(**source, **columns)
        if "train" in data:
            unlabelled = concatenate_datasets([data["train"], unlabelled.cast(data["train"].features)])
        data["train"] = unlabelled
    return data, label_names


def source_of_part(args: TaskArguments, part: str) -> dict[str, str | None] | None:
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


def note_reading(
    columns: Mapping[str, str],
    truncation: Truncation,
    max_length: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Records columns and truncation in the model's config, and the length in its tokenizer, so that they are saved."""
    setattr(model.config, READING, {**columns, "truncation": truncation})
    tokenizer.model_max_length = max_length


def noted_reading(configs: Sequence[PreTrainedConfig]) -> dict[str, Any]:
    """The record of `note_reading` from the first config that has one; empty if none has."""
    return next(filter(None, (getattr(config, READING, None) for config in configs)), {})


def data_columns(task: Task, configs: Sequence[PreTrainedConfig], given: Mapping[str, str | None]) -> dict[str, str]:
    """Column name by option: as given, else as recorded in the first config with a record, else the default."""
    noted = noted_reading(configs)
    return {option: given[option] or noted.get(option, default) for option, default in task.columns.items()}


def label_names_of(config: PreTrainedConfig) -> list[str]:
    """Class names in the order of their numbers."""
    return [config.id2label[number] for number in range(config.num_labels)]


def columns_by_name(own: Sequence[str], label_names: Sequence[str], name: str) -> list[int]:
    """Index of each class of `label_names` among a model's own classes.

    Classes are matched by name, or by number if one side has only placeholder names (`LABEL_0`, ...).

    Raises:
        ValueError: if the model, called `name`, has other classes.
    """
    own, label_names = list(own), list(label_names)
    if sorted(own) == sorted(label_names):
        return [own.index(label) for label in label_names]
    if len(own) == len(label_names) and [f"LABEL_{number}" for number in range(len(own))] in (own, label_names):
        return list(range(len(own)))
    raise ValueError(
        f"{name} has the classes {', '.join(own)}, but {', '.join(label_names)} are needed: use a model with these "
        f"classes."
    )


def _names_of_head(task: Task, model_name: str | None, label_names: list[str]) -> list[str]:
    """The model's class names if its head has the same classes, in any order; else `label_names`."""
    if model_name is None:
        return label_names
    config = load_config(model_name)
    own, unnamed = label_names_of(config), [f"LABEL_{number}" for number in range(len(label_names))]
    fits = sorted(own) == sorted(label_names) or (len(own) == len(label_names) and label_names == unnamed)
    return own if task.has_head(config) and fits else label_names
