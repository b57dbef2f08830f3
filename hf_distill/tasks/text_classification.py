"""Text classification: a class, several classes or a number for each text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedConfig

from hf_distill.data import encode_texts, load_labelled_texts, load_unlabelled_texts
from hf_distill.evaluation.report import PUBLISHED
from hf_distill.lengths import Truncation
from hf_distill.tasks.classification import ClassificationTask, LabelArguments
from hf_distill.tasks.data import noted_reading
from hf_distill.tasks.task import Reading


@dataclass
class TextClassificationArguments(LabelArguments):
    """Model, teacher and data of a text classification training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> TextClassificationArguments(train_file="train.csv", validation_share=0.1, num_layers=6)
    """

    text_column: str = field(default="text", metadata={"help": "Column with the texts."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens per text. Saved with the model. Default: what model and teacher were "
            "trained with, else the most that both accept."
        },
    )
    truncation: Truncation | None = field(
        default=None,
        metadata={
            "help": "Which part of a longer text is kept: head, tail, or head_tail (a quarter from the head, the rest "
            "from the tail). Saved with the model. Default: what model or teacher was trained with, else head."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.truncation not in (None, *get_args(Truncation)):
            raise ValueError(f"truncation={self.truncation!r} must be one of {', '.join(get_args(Truncation))}.")


class TextClassification(ClassificationTask):
    name = "text-classification"
    pipeline_tag = "text-classification"
    summary = "a class, several classes or a number for each text"
    data = "text, label"
    example = """\
teacher_model_name_or_path: textattack/bert-base-uncased-imdb
dataset_name: stanfordnlp/imdb
train_split: train
test_split: test
output_dir: outputs/student
"""
    arguments = TextClassificationArguments
    auto_class = AutoModelForSequenceClassification
    head = "sequence classification"
    lora_task_type = TaskType.SEQ_CLS
    text_columns = ("text",)
    published = PUBLISHED
    notes = (
        "F1 is for the second class if there are two classes, else the mean over all classes. Calibration error is the "
        "mean distance between confidence and accuracy, in 15 bins. KL(teacher || student) is in nats at temperature "
        "1, averaged over the texts."
    )

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        reading = super().complete(reading, configs)
        return reading | {"truncation": reading["truncation"] or noted_reading(configs).get("truncation", "head")}

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns, problem_type = (reading["text_column"], reading["label_column"]), reading["problem_type"]
        return load_labelled_texts(source, *columns, classes, split, config_name, problem_type)

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        num_classes = None if classes is None else len(classes)
        return load_unlabelled_texts(
            source, reading["text_column"], split, config_name, reading["problem_type"], num_classes
        )

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        return encode_texts(rows, processor, reading["max_length"], reading["truncation"])

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorWithPadding(processor)

    def inputs(self, rows: Dataset) -> list:
        return list(rows["text"])
