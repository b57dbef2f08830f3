"""The rows that are asked for, and what their classes are called."""

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
"""Of what `validation_share` holds out, so that trainings with other seeds hold out the same."""


def load_data(task: Task, args: TaskArguments, teacher: str | None = None) -> tuple[dict[str, Dataset], list[str]]:
    """The data sets that are asked for, and the names of the classes.

    Those are the model's own where its head is for the same classes, else the teacher's, else those in the data.

    Args:
        task: what loads a data set.
        args: what is asked for.
        teacher: its name or folder.

    Returns:
        By part (train, with the unlabelled rows behind it; validation; test), those that there are.

    Raises:
        ValueError: as `task.load`.
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
        raise ValueError("Neither data nor teacher says which classes there are: give train_file or train_split.")
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
    """What a part of the data is called: its file, or its data set on the Hub with the split."""
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
    """Has a model and its tokenizer say, wherever they are saved, how the texts were read that it is trained on."""
    setattr(model.config, READING, {**columns, "truncation": truncation})
    tokenizer.model_max_length = max_length


def noted_reading(configs: Sequence[PreTrainedConfig]) -> dict[str, Any]:
    """What the first of the models notes which does so; nothing if none does."""
    return next(filter(None, (getattr(config, READING, None) for config in configs)), {})


def data_columns(task: Task, configs: Sequence[PreTrainedConfig], given: Mapping[str, str | None]) -> dict[str, str]:
    """By option, the columns that are given, or that the first of the models says it was trained on."""
    noted = noted_reading(configs)
    return {option: given[option] or noted.get(option, default) for option, default in task.columns.items()}


def label_names_of(config: PreTrainedConfig) -> list[str]:
    """The classes by number."""
    return [config.id2label[number] for number in range(config.num_labels)]


def columns_by_name(own: Sequence[str], label_names: Sequence[str], name: str) -> list[int]:
    """Where the classes of `label_names` are among a model's own: by name, or by number if one side has no names.

    Raises:
        ValueError: if the model, which is called `name`, has other classes.
    """
    own, label_names = list(own), list(label_names)
    if sorted(own) == sorted(label_names):
        return [own.index(label) for label in label_names]
    if len(own) == len(label_names) and [f"LABEL_{number}" for number in range(len(own))] in (own, label_names):
        return list(range(len(own)))
    raise ValueError(f"The classes of {name} are {', '.join(own)}, not {', '.join(label_names)}.")


def _names_of_head(task: Task, model_name: str | None, label_names: list[str]) -> list[str]:
    """Those of the model, if it has a head for the same classes, in another order maybe; else `label_names`."""
    if model_name is None:
        return label_names
    config = load_config(model_name)
    own, unnamed = label_names_of(config), [f"LABEL_{number}" for number in range(len(label_names))]
    fits = sorted(own) == sorted(label_names) or (len(own) == len(label_names) and label_names == unnamed)
    return own if task.has_head(config) and fits else label_names
