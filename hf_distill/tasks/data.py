"""The texts that are asked for, and what their classes are called."""

from collections.abc import Sequence

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from hf_distill.data import load_labelled_texts, load_unlabelled_texts
from hf_distill.lengths import READING
from hf_distill.loading import load_config
from hf_distill.tasks.arguments import TextClassificationArguments

SPLIT_SEED = 0
"""Of what `validation_share` holds out, so that trainings with other seeds hold out the same."""


def load_text_data(
    task: TextClassificationArguments, teacher: str | None = None
) -> tuple[dict[str, Dataset], list[str]]:
    """The data sets that are asked for, with the columns `text` and `labels`, and the names of the classes.

    Those are the model's own where its head is for the same classes, else the teacher's, else those in the data.

    Args:
        task: what is asked for.
        teacher: its name or folder.

    Returns:
        By part (train, with the unlabelled texts behind it; validation; test), those that there are.

    Raises:
        ValueError: as `load_labelled_texts`.
    """
    label_names = None
    if teacher is not None and find_adapter_config_file(teacher) is None:
        label_names = label_names_of(load_config(teacher))
    data = {}
    for part in ("train", "validation", "test"):
        if source := source_of_part(task, part):
            data[part], label_names = _load_labelled(task, source, label_names)
            if part == "train" and (own := _names_of_head(task.model_name_or_path, label_names)) != label_names:
                data[part], label_names = _load_labelled(task, source, own)
    if label_names is None:
        raise ValueError("Neither data nor teacher says which classes there are: give train_file or train_split.")
    if task.validation_share is not None:
        parts = data["train"].train_test_split(task.validation_share, seed=SPLIT_SEED)
        data |= {"train": parts["train"], "validation": parts["test"]}
    if source := source_of_part(task, "unlabelled"):
        unlabelled = load_unlabelled_texts(text_column=task.text_column, **source)
        if "train" in data:
            unlabelled = concatenate_datasets([data["train"], unlabelled.cast(data["train"].features)])
        data["train"] = unlabelled
    return data, label_names


def source_of_part(task: TextClassificationArguments, part: str) -> dict[str, str | None] | None:
    if file := getattr(task, f"{part}_file"):
        return {"source": file}
    if split := getattr(task, f"{part}_split"):
        return {"source": task.dataset_name, "config_name": task.dataset_config_name, "split": split}
    return None


def name_of_part(task: TextClassificationArguments, part: str) -> str:
    """What a part of the data is called: its file, or its data set on the Hub with the split."""
    parts = (part, "unlabelled") if part == "train" else (part,)
    sources = filter(None, (source_of_part(task, own) for own in parts))
    names = [", ".join(filter(None, source.values())) for source in sources]
    return " and ".join(names) or f"validation_share={task.validation_share}"


def _load_labelled(
    task: TextClassificationArguments, source: dict[str, str | None], label_names: list[str] | None
) -> tuple[Dataset, list[str]]:
    return load_labelled_texts(
        text_column=task.text_column, label_column=task.label_column, label_names=label_names, **source
    )


def note_reading(
    task: TextClassificationArguments, max_length: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Has a model and its tokenizer say, wherever they are saved, how the texts were read that it is trained on."""
    columns = {"text_column": task.text_column, "label_column": task.label_column}
    setattr(model.config, READING, {**columns, "truncation": task.truncation})
    tokenizer.model_max_length = max_length


def noted_reading(configs: Sequence[PreTrainedConfig]) -> dict[str, str]:
    """What the first of the models notes which does so; nothing if none does."""
    return next(filter(None, (getattr(config, READING, None) for config in configs)), {})


def data_columns(
    configs: Sequence[PreTrainedConfig], text_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of texts and labels: those that are given, or that the first of the models says it was trained on."""
    noted = noted_reading(configs)
    return text_column or noted.get("text_column", "text"), label_column or noted.get("label_column", "label")


def has_classification_head(config: PreTrainedConfig) -> bool:
    return any("ForSequenceClassification" in name for name in config.architectures or [])


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


def _names_of_head(model_name: str | None, label_names: list[str]) -> list[str]:
    """Those of the model, if it has a head for the same classes, in another order maybe; else `label_names`."""
    if model_name is None:
        return label_names
    config = load_config(model_name)
    own, unnamed = label_names_of(config), [f"LABEL_{number}" for number in range(len(label_names))]
    fits = sorted(own) == sorted(label_names) or (len(own) == len(label_names) and label_names == unnamed)
    return own if has_classification_head(config) and fits else label_names
