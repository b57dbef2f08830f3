"""Classification of pairs of texts: a class, several classes or a number for each pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedConfig

from hf_distill.data import encode_pairs, load_labelled_pairs, load_unlabelled_pairs
from hf_distill.tasks.classification import ClassificationTask, LabelArguments
from hf_distill.tasks.task import Reading

READS_PAIRS = {"reads_pairs": True}
"""Is recorded in the config of a model that reads pairs, for its predictor, its exports and its service."""


@dataclass
class TextPairClassificationArguments(LabelArguments):
    """Model, teacher and data of a training on pairs of texts.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> TextPairClassificationArguments(
        ...     train_file="pairs.csv", text_column="sentence1", text_pair_column="sentence2"
        ... )
    """

    task: str = field(
        default="text-pair-classification", metadata={"help": "The task: a name that `hf-distill tasks` lists."}
    )
    text_column: str = field(default="text", metadata={"help": "Column with the first text of each pair."})
    text_pair_column: str = field(default="text_pair", metadata={"help": "Column with the second text of each pair."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens per pair. Of a longer pair, the end of the longer text is removed. Saved "
            "with the model. Default: what model and teacher were trained with, else the most that both accept."
        },
    )


class TextPairClassification(ClassificationTask):
    name = "text-pair-classification"
    pipeline_tag = "text-classification"
    summary = "a class, several classes or a number for each pair of texts"
    data = "text, text_pair, label"
    example = """\
teacher_model_name_or_path: textattack/bert-base-uncased-MRPC
dataset_name: nyu-mll/glue
dataset_config_name: mrpc
train_split: train
test_split: validation
text_column: sentence1
text_pair_column: sentence2
output_dir: outputs/student
"""
    arguments = TextPairClassificationArguments
    auto_class = AutoModelForSequenceClassification
    head = "sequence classification"
    lora_task_type = TaskType.SEQ_CLS
    text_columns = ("text", "text_pair")
    notes = (
        "F1 is for the second class if there are two classes, else the mean over all classes. Calibration error is the "
        "mean distance between confidence and accuracy, in 15 bins. KL(teacher || student) is in nats at temperature "
        "1, averaged over the pairs."
    )

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        return super().complete(reading, configs) | READS_PAIRS

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = (reading["text_column"], reading["text_pair_column"], reading["label_column"])
        return load_labelled_pairs(source, *columns, classes, split, config_name, reading["problem_type"])

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        columns = (reading["text_column"], reading["text_pair_column"])
        num_classes = None if classes is None else len(classes)
        return load_unlabelled_pairs(source, *columns, split, config_name, reading["problem_type"], num_classes)

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        return encode_pairs(rows, processor, reading["max_length"])

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorWithPadding(processor)

    def inputs(self, rows: Dataset) -> list:
        return list(zip(rows["text"][:], rows["text_pair"][:], strict=True))

    def words_of_input(self, rows: Dataset, row: int) -> str:
        return " | ".join(self.inputs(rows.select([row]))[0])
