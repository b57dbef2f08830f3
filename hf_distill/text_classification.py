"""Text classification from data to a model, and from a model to its figures: `hf-distill train` and `evaluate`."""

import copy
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import find_adapter_config_file, logging

from hf_distill.evaluation import classification_metrics, plot_calibration
from hf_distill.student import make_student
from hf_distill.training import (
    DistillationTrainer,
    DistillationTrainingArguments,
    add_teacher_targets,
    encode_texts,
    load_labelled_texts,
    load_unlabelled_texts,
)
from hf_distill.training.teacher_loading import load_teacher
from hf_distill.training.truncation import Truncation, length_of_rows

logger = logging.get_logger(__name__)

PARTS = ("train", "validation", "test", "unlabelled")

SPLIT_SEED = 0
"""Of what `validation_share` holds out, so that trainings with other seeds hold out the same."""


@dataclass
class TextClassificationArguments:
    """What is trained on what; how is for `DistillationTrainingArguments`.

    Raises:
        ValueError: if options contradict each other, are out of their range, or would have no effect.
    """

    # The model
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "What is trained, a name on the Hub or a folder. By default it is cut from the teacher."},
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "Layers of a student that is cut from the teacher. By default half."}
    )
    layers: list[str] | None = field(
        default=None,
        metadata={"help": "Which layers that student has: alternate (the default), spread, first or last; or indices."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on all linear layers, and the head, in place of all weights; 8 "
            "to 16 is usual. What is saved at the end is the plain model that they amount to."
        },
    )

    # The teacher, which `teacher_model_name_or_path` names
    store_teacher_targets: bool | None = field(
        default=None,
        metadata={
            "help": "Have the teacher read each text once, before the training, and not in every epoch. It may then "
            "have another tokenizer. By default where alpha_cos is 0: hidden states take 2 bytes per token and unit of "
            "width."
        },
    )

    # The data
    train_file: str | None = field(
        default=None,
        metadata={"help": "CSV, JSON or Parquet, or a folder with a folder of .txt files for each class."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "As train_file; evaluated on while training, and at its end."}
    )
    test_file: str | None = field(default=None, metadata={"help": "As train_file; evaluated on once, at the end."})
    unlabelled_file: str | None = field(
        default=None,
        metadata={
            "help": "Texts without labels, which the student learns from the teacher alone: as train_file, or .txt "
            "with a text on each line, or a folder of .txt files."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, whose splits are read in place of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration, if it has several."})
    train_split: str | None = field(default=None, metadata={"help": "Its split to train on, such as train."})
    validation_split: str | None = field(default=None, metadata={"help": "In place of validation_file."})
    test_split: str | None = field(default=None, metadata={"help": "In place of test_file."})
    unlabelled_split: str | None = field(default=None, metadata={"help": "In place of unlabelled_file."})
    validation_share: float | None = field(
        default=None,
        metadata={"help": "Hold out this share of the training texts as validation set, the same with every seed."},
    )
    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    label_column: str = field(
        default="label", metadata={"help": "The column with the labels: names, or numbers from 0."}
    )

    # Long texts
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per text. By default as many as the model takes."}
    )
    truncation: Truncation = field(
        default="head",
        metadata={"help": "What is kept of longer texts: the head, the tail, or a quarter head and the rest tail."},
    )

    def __post_init__(self):
        if self.layers is not None and not isinstance(self.layers, list):
            self.layers = [self.layers]  # YAML: `layers: last`
        for part in PARTS:
            if getattr(self, f"{part}_file") and getattr(self, f"{part}_split"):
                raise ValueError(f"There are both {part}_file and {part}_split: give one of them.")
        splits = [f"{part}_split" for part in PARTS if getattr(self, f"{part}_split")]
        if splits and not self.dataset_name:
            raise ValueError(f"{splits[0]} is a split of dataset_name, which is not given: add it, or use files.")
        if not splits and (self.dataset_name or self.dataset_config_name):
            raise ValueError("dataset_name would have no effect without a split of it, such as train_split=train.")
        if self.validation_share is not None:
            if not 0 < self.validation_share < 1:
                raise ValueError(f"validation_share={self.validation_share} should be between 0 and 1.")
            if self.validation_file or self.validation_split:
                raise ValueError("There are both a validation set and validation_share: give one of them.")
        if self.model_name_or_path and (self.num_layers is not None or self.layers is not None):
            raise ValueError(
                "num_layers and layers would have no effect with model_name_or_path: a student is cut from the "
                "teacher where that is not given."
            )
        for name in ("max_length", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} should be 1 or more.")
        if self.truncation not in get_args(Truncation):
            raise ValueError(f"truncation={self.truncation!r} should be one of {', '.join(get_args(Truncation))}.")


def train_text_classifier(
    task: TextClassificationArguments, training: DistillationTrainingArguments
) -> DistillationTrainer:
    """Fine-tunes a text classifier, or distils one from a fine-tuned teacher, and saves it with its tokenizer.

    Without `teacher_model_name_or_path` the labels alone are learned. With it, a student is cut from the teacher's
    layers, or is `model_name_or_path`, such as a general student that was distilled before (the two steps of Sanh et
    al., 2019, https://arxiv.org/abs/1910.01108). Where no hidden states are compared (`alpha_cos=0`), the teacher reads
    each text once and is gone before the training. A training that was stopped goes on from the last checkpoint in
    `output_dir`. There, beside model and tokenizer, are then `train_results.json`, with validation data
    `eval_results.json`, and with test data `test_results.json`.

    Args:
        task: what is trained on what.
        training: how. Without a teacher its loss weights have to be the defaults, or both 0.

    Returns:
        The trainer, with the trained model.

    Raises:
        ValueError: before the first step, if options or data are not as they should be, or do not fit each other.
        ImportError: with validation or test data, without scikit-learn.

    Example:
        >>> task = TextClassificationArguments(train_file="train.csv", test_file="test.csv")
        >>> training = DistillationTrainingArguments("student", teacher_model_name_or_path="outputs/teacher")
        >>> trainer = train_text_classifier(task, training)
    """
    training = copy.copy(training)  # the caller's own stays as it is
    _check(task, training)
    with training.main_process_first():  # what it reads and tokenises, the others find in the cache
        data, label_names = load_text_data(task, training.teacher_model_name_or_path)
    set_seed(training.seed)  # for the new head
    model, tokenizer = _load_model(task, training.teacher_model_name_or_path, label_names)
    if _stores_targets(task, training):
        rows = _rows_with_targets(task, training, data, model, tokenizer)
    else:
        rows = _rows(task, training, data, tokenizer, length_of_rows(task.max_length, tokenizer, model))
    if task.lora_rank is not None:
        model = get_peft_model(model, _lora(model, task.lora_rank))
    trainer = DistillationTrainer(
        model,
        training,
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,  # which pads each batch to its longest row
        compute_metrics=compute_metrics,
    )
    _run(trainer, rows.get("test"))
    return trainer


def _check(task: TextClassificationArguments, training: DistillationTrainingArguments) -> None:
    """What can be said of the options before anything is read; without a teacher, switches off what would read it."""
    if training.teacher_model_name_or_path is None:
        if task.model_name_or_path is None:
            raise ValueError(
                "There is neither model_name_or_path nor teacher_model_name_or_path: give the one to fine-tune, the "
                "other to distil, or both."
            )
        if task.unlabelled_file or task.unlabelled_split:
            raise ValueError("Nothing is learned from texts without labels but what a teacher says of them: give one.")
        defaults = DistillationTrainingArguments
        if (training.alpha_kl, training.alpha_cos) == (defaults.alpha_kl, defaults.alpha_cos):
            training.alpha_kl = training.alpha_cos = 0.0
            training.alpha_task = 1.0 if training.alpha_task == defaults.alpha_task else training.alpha_task
            training.check_distillation_fields()
    labelled = task.train_file or task.train_split
    if not labelled and not (task.unlabelled_file or task.unlabelled_split):
        raise ValueError("There is nothing to train on: give train_file, or dataset_name and train_split.")
    if not labelled and (training.alpha_task > 0 or task.validation_share is not None):
        raise ValueError(
            f"Without train_file or train_split there are no labels, but alpha_task={training.alpha_task} and "
            f"validation_share={task.validation_share}: set alpha_task=0 to learn from the teacher alone."
        )
    has_validation = task.validation_file or task.validation_split or task.validation_share
    if training.eval_strategy != "no" and not has_validation:
        raise ValueError(
            f"eval_strategy={training.eval_strategy.value!r} needs something to evaluate on: give validation_file, "
            f"validation_split or validation_share."
        )
    if task.lora_rank is not None and training.push_to_hub:
        raise ValueError(
            "push_to_hub would push the adapter, where output_dir gets the plain model: leave it out, and upload "
            "output_dir at the end, as with `hf upload`."
        )
    if has_validation or task.test_file or task.test_split:
        classification_metrics([[0.0, 1.0]], [1])  # what it needs should not be missed after the training


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
        label_names = label_names_of(_load_config(teacher))
    data = {}
    for part in ("train", "validation", "test"):
        if source := _source(task, part):
            data[part], label_names = _load_labelled(task, source, label_names)
            if part == "train" and (own := _names_of_head(task.model_name_or_path, label_names)) != label_names:
                data[part], label_names = _load_labelled(task, source, own)
    if label_names is None:
        raise ValueError("Neither data nor teacher says which classes there are: give train_file or train_split.")
    if task.validation_share is not None:
        parts = data["train"].train_test_split(task.validation_share, seed=SPLIT_SEED)
        data |= {"train": parts["train"], "validation": parts["test"]}
    if source := _source(task, "unlabelled"):
        unlabelled = load_unlabelled_texts(text_column=task.text_column, **source)
        if "train" in data:
            unlabelled = concatenate_datasets([data["train"], unlabelled.cast(data["train"].features)])
        data["train"] = unlabelled
    return data, label_names


def _source(task: TextClassificationArguments, part: str) -> dict[str, str | None] | None:
    if file := getattr(task, f"{part}_file"):
        return {"source": file}
    if split := getattr(task, f"{part}_split"):
        return {"source": task.dataset_name, "config_name": task.dataset_config_name, "split": split}
    return None


def _load_labelled(
    task: TextClassificationArguments, source: dict[str, str | None], label_names: list[str] | None
) -> tuple[Dataset, list[str]]:
    return load_labelled_texts(
        text_column=task.text_column, label_column=task.label_column, label_names=label_names, **source
    )


def _load_config(name: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"{name} is no folder with a model, and none was found on the Hub: {error}") from error


def label_names_of(config: PreTrainedConfig) -> list[str]:
    """The classes by number."""
    return [config.id2label[number] for number in range(config.num_labels)]


def _names_of_head(model_name: str | None, label_names: list[str]) -> list[str]:
    """Those of the model, if it has a head for the same classes, in another order maybe; else `label_names`."""
    if model_name is None:
        return label_names
    config = _load_config(model_name)
    own, unnamed = label_names_of(config), [f"LABEL_{number}" for number in range(len(label_names))]
    has_head = any("ForSequenceClassification" in name for name in config.architectures or [])
    fits = sorted(own) == sorted(label_names) or (len(own) == len(label_names) and label_names == unnamed)
    return own if has_head and fits else label_names


def _load_model(
    task: TextClassificationArguments, teacher: str | None, label_names: list[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What is trained: a model with a head for the classes, or the teacher with fewer layers. In fp32."""
    if task.model_name_or_path is None:
        model = make_student(load_classifier(teacher), num_layers=task.num_layers, layers=_layers(task.layers))
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            task.model_name_or_path,
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,  # of a head for another number of classes
            dtype=torch.float32,
            use_safetensors=True,
        )
    tokenizer = AutoTokenizer.from_pretrained(task.model_name_or_path or teacher)
    return model, _with_padding(tokenizer, model)


def _rows(
    task: TextClassificationArguments,
    training: DistillationTrainingArguments,
    data: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, Dataset]:
    with training.main_process_first():
        return {part: encode_texts(texts, tokenizer, max_length, task.truncation) for part, texts in data.items()}


def _stores_targets(task: TextClassificationArguments, training: DistillationTrainingArguments) -> bool:
    if training.teacher_model_name_or_path is None or not training.reads_teacher:
        if task.store_teacher_targets is not None:
            raise ValueError("store_teacher_targets would have no effect without a teacher: leave it out.")
        return False
    return training.alpha_cos == 0 if task.store_teacher_targets is None else task.store_teacher_targets


def _rows_with_targets(
    task: TextClassificationArguments,
    training: DistillationTrainingArguments,
    data: dict[str, Dataset],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Dataset]:
    """Rows with what the teacher says of each. The teacher itself is then none of the training's business."""
    name = training.teacher_model_name_or_path
    dtype = "auto" if training.teacher_dtype is None else getattr(torch, training.teacher_dtype)
    options = (dtype, training.teacher_quantization, training.teacher_device_map)
    teacher = load_teacher(name, model, None, *options)
    teacher_tokenizer = _with_padding(AutoTokenizer.from_pretrained(name), teacher)
    training.teacher_model_name_or_path = training.teacher_dtype = None
    training.teacher_quantization = training.teacher_device_map = None
    max_length = length_of_rows(task.max_length, tokenizer, model)
    batch_size = training.per_device_eval_batch_size

    if tokenizer.get_vocab() == teacher_tokenizer.get_vocab():
        max_length = min(max_length, length_of_rows(None, teacher_tokenizer, teacher))
        stored = {"hidden_states": training.alpha_cos > 0, "batch_size": batch_size}
        rows = _rows(task, training, data, tokenizer, max_length)
        return {part: add_teacher_targets(own, teacher, tokenizer, **stored) for part, own in rows.items()}
    if training.alpha_cos > 0:
        raise ValueError(
            f"The teacher {name} has another tokenizer, so its hidden states are of other tokens than the student's: "
            f"set alpha_cos=0."
        )
    if task.truncation == "head_tail":
        logger.warning(f"{name} has a tokenizer of its own, and reads the tail of texts that are too long for it.")
    teacher_tokenizer.model_max_length = length_of_rows(None, teacher_tokenizer, teacher)
    teacher_tokenizer.truncation_side = "right" if task.truncation == "head" else "left"
    stored = {"text_columns": "text", "batch_size": batch_size}
    data = {part: add_teacher_targets(own, teacher, teacher_tokenizer, **stored) for part, own in data.items()}
    return _rows(task, training, data, tokenizer, max_length)


def _layers(words: list[str] | None) -> str | list[int] | None:
    if words is None:
        return None
    numbers = [str(word).removeprefix("-").isdecimal() for word in words]
    if all(numbers):
        return [int(word) for word in words]
    if len(words) > 1:
        raise ValueError(f"layers={words} should be indices of layers, or one strategy such as alternate.")
    return words[0]


def _with_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """As for GPT-2, which pads with the end of the text; its head looks for the last token before the padding."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _lora(model: PreTrainedModel, rank: int) -> LoraConfig:
    """On all linear layers, scaled by 2; the head is trained whole, as is a pooler, which may be as new as the head."""
    backbone = model.base_model_prefix
    children = dict(model.named_children())
    head = [name for name, module in children.items() if name != backbone and list(module.parameters())]
    if getattr(model.base_model, "pooler", None) is not None:
        head.append(f"{backbone}.pooler")
    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules="all-linear",
        exclude_modules=rf"({'|'.join(map(re.escape, head))})(\..*)?",
        modules_to_save=head,
    )


def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """For `Trainer`: accuracy, F1, Matthews correlation and calibration error."""
    return classification_metrics(evaluated.predictions, evaluated.label_ids)


def _run(trainer: DistillationTrainer, test_rows: Dataset | None) -> None:
    """Trains, from the last checkpoint if there is one, then saves and evaluates."""
    args = trainer.args
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None and os.path.isdir(args.output_dir):
        checkpoint = get_last_checkpoint(args.output_dir)
    metrics = {"train": trainer.train(resume_from_checkpoint=checkpoint).metrics}
    if trainer.eval_dataset is not None:
        metrics["eval"] = trainer.evaluate()
    if test_rows is not None:
        metrics["test"] = trainer.evaluate(test_rows, metric_key_prefix="test")
    if hasattr(trainer.model, "peft_config"):
        trainer.save_merged_model(args.output_dir)
    else:
        trainer.save_model()
    trainer.save_state()
    for part, of_part in metrics.items():
        trainer.log_metrics(part, of_part)
        trainer.save_metrics(part, of_part)
    if args.push_to_hub:
        trainer.push_to_hub()


def load_classifier(name: str) -> PreTrainedModel:
    """A model that was fine-tuned to classify texts, in fp32.

    Raises:
        ValueError: if there is none of this name, or if it has no trained head.
    """
    model, info = AutoModelForSequenceClassification.from_pretrained(
        name, config=_load_config(name), dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{name} has no weights for {', '.join(sorted(info['missing_keys']))}, which would be random numbers: "
            f"fine-tune it first."
        )
    return model.eval()


@torch.inference_mode()
def classify_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
    truncation: Truncation = "head",
    batch_size: int = 32,
    label_names: Sequence[str] | None = None,
) -> torch.Tensor:
    """The logits of texts, in batches of like length.

    Args:
        model: a classifier, on whatever device.
        tokenizer: the model's.
        texts: what it reads.
        max_length: tokens per text; by default as many as the model takes.
        truncation: as in `encode_texts`.
        batch_size: texts that are read at one time.
        label_names: the order of the columns, by the names of the classes; by default the model's own.

    Returns:
        `[texts, labels]`, in fp32 on the CPU.

    Raises:
        ValueError: if the model has other classes, or has fewer positions than `max_length`.

    Example:
        >>> classify_texts(model, tokenizer, ["A warm film."]).softmax(-1)
    """
    columns = _columns(model, label_names)
    length = length_of_rows(max_length, tokenizer, model)
    rows = encode_texts(Dataset.from_dict({"text": list(texts)}), tokenizer, length, truncation)
    order = sorted(range(len(rows)), key=[len(ids) for ids in rows["input_ids"]].__getitem__)
    collate = DataCollatorWithPadding(_with_padding(tokenizer, model))
    was_training = model.training
    model.eval()
    logits = torch.empty(len(rows), model.config.num_labels)
    for start in range(0, len(rows), batch_size):
        indices = order[start : start + batch_size]
        batch = collate([rows[index] for index in indices])
        logits[indices] = model(**batch.to(model.device)).logits.float().cpu()
    model.train(was_training)
    return logits[:, columns]


def evaluate_text_classifier(
    model: str,
    data: str,
    teacher: str | None = None,
    *,
    text_column: str = "text",
    label_column: str = "label",
    split: str = "test",
    config_name: str | None = None,
    max_length: int | None = None,
    truncation: Truncation = "head",
    batch_size: int = 32,
    output: str | Path | None = None,
) -> dict[str, float]:
    """How good a classifier is on labelled texts, and how near to its teacher.

    Args:
        model: a name on the Hub or a folder.
        data: a file, a folder or a name on the Hub, as in `load_labelled_texts`; the labels are the model's, by name or
            by number.
        teacher: a name or a folder too; it may be of another family, with another tokenizer.
        text_column: as in `load_labelled_texts`, as are the next three.
        label_column: the column with the labels.
        split: of a data set on the Hub.
        config_name: of a data set on the Hub.
        max_length: as in `classify_texts`, as are the next two.
        truncation: which part of long texts is read.
        batch_size: texts that are read at one time.
        output: a folder for `evaluation.json` and the plot `calibration.png`; by default nothing is written.

    Returns:
        `texts`, their number, and what `classification_metrics` returns.

    Raises:
        ValueError: if data or models are not as they should be, or do not fit each other.
        ImportError: without scikit-learn or, with `output`, without matplotlib.

    Example:
        >>> evaluate_text_classifier("outputs/student", "test.csv", teacher="outputs/teacher")["accuracy"]
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    names = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    classifiers = {role: load_classifier(name) for role, name in names.items()}
    label_names = label_names_of(classifiers["model"].config)
    _columns(classifiers.get("teacher", classifiers["model"]), label_names)  # what does not fit is said at once
    texts, _ = load_labelled_texts(data, text_column, label_column, label_names, split, config_name)
    logits = {}
    for role, name in names.items():
        tokenizer, classifier = AutoTokenizer.from_pretrained(name), classifiers[role].to(device)
        options = (max_length, truncation, batch_size, label_names)
        logits[role] = classify_texts(classifier, tokenizer, texts["text"], *options)
    labels = list(texts["labels"])
    metrics = {"texts": len(labels), **classification_metrics(logits["model"], labels, logits.get("teacher"))}
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        plot_calibration(
            {names[role]: (own.softmax(-1), labels) for role, own in logits.items()}, Path(output, "calibration.png")
        )
        settings = {"model": model, "data": data, "teacher": teacher, "max_length": max_length}
        _write_whole(Path(output, "evaluation.json"), settings | {"truncation": truncation, "metrics": metrics})
    return metrics


def _columns(model: PreTrainedModel, label_names: Sequence[str] | None) -> list[int]:
    """Where the classes of `label_names` are among the model's: by name, or by number if one side has no names."""
    own = label_names_of(model.config)
    label_names = own if label_names is None else list(label_names)
    if sorted(own) == sorted(label_names):
        return [own.index(name) for name in label_names]
    if len(own) == len(label_names) and [f"LABEL_{number}" for number in range(len(own))] in (own, label_names):
        return list(range(len(own)))
    raise ValueError(f"The classes of {model.name_or_path} are {', '.join(own)}, not {', '.join(label_names)}.")


def _write_whole(file: Path, content: dict[str, object]) -> None:
    """Writes JSON; a process that is killed meanwhile leaves what was there before."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(file)
