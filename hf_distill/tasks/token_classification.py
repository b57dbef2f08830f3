"""Token classification: a tag for each word, such as named entities and parts of speech."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from peft import TaskType
from tokenizers import Tokenizer
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedConfig,
)

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.tagged_windows import encode_tagged_words, tokenize_in_windows
from hf_distill.data.tagged_words import load_tagged_words, load_untagged_words
from hf_distill.deployment.entities import classify_words
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import TextEncoder
from hf_distill.evaluation.report import Metric
from hf_distill.evaluation.tagging import Labels, tagging_counts, tagging_fidelity, tagging_metrics
from hf_distill.lengths import default_stride
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.classes import columns_by_name
from hf_distill.tasks.task import Done, Reading, Task
from hf_distill.training import DistillationTrainingArguments
from hf_distill.words import Span, deciding_tokens, group_words, labels_at, words_read


@dataclass
class TokenClassificationArguments(TaskArguments):
    """Model, teacher and data of a token classification training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> TokenClassificationArguments(train_file="train.conll", validation_share=0.1, num_layers=6)
    """

    task: str = field(default="token-classification", metadata={"help": "The task."})
    tokens_column: str = field(
        default="tokens", metadata={"help": "Column with the words of each text. CoNLL files have no columns."}
    )
    tags_column: str = field(
        default="ner_tags",
        metadata={"help": "Column with a tag for each word: names such as B-PER, or class numbers from 0."},
    )
    text_column: str = field(default="text", metadata={"help": "Column with the texts, if there is a spans_column."})
    spans_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with a list of {start, end, label} in characters for each text, such as entities. Default: "
            "the data has words and tags."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens that the model reads at a time. Saved with the model. Default: what "
            "model and teacher were trained with, else the most that both accept."
        },
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "A longer text is read in windows of max_length tokens; neighbouring windows have this many tokens "
            "in common. Saved with the model. Default: a quarter of max_length."
        },
    )


class TokenClassification(Task):
    """A row's prediction is a list with the label of each word; None for a word without tokens."""

    name = "token-classification"
    pipeline_tag = "token-classification"
    summary = "a tag for each word of a text, such as named entities and parts of speech"
    data = (
        "tokens, ner_tags; or a CoNLL file (.conll, .bio, .iob, .iob2, .txt); or text and a spans_column with "
        "{start, end, label}"
    )
    example = """\
teacher_model_name_or_path: dslim/bert-base-NER
train_file: train.conll
validation_file: dev.conll
test_file: test.conll
output_dir: outputs/student
"""
    arguments = TokenClassificationArguments
    auto_class = AutoModelForTokenClassification
    head = "token classification"
    lora_task_type = TaskType.TOKEN_CLS
    metric_packages = ("seqeval.metrics", "sklearn.metrics")
    quality: ClassVar[Mapping[str, Metric]] = {
        "f1": Metric("F1"),
        "precision": Metric("precision"),
        "recall": Metric("recall"),
        "accuracy": Metric("accuracy of words"),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "agreement": Metric("agreement with the teacher"),
        "f1_to_teacher": Metric("F1 against the teacher"),
    }
    notes = (
        "For tags with B- and I-, an entity is right if its kind, its first and its last word are right; precision, "
        "recall and F1 are over all entities. For plain tags, F1 is the mean over the tags. Agreement is the share of "
        "words with the teacher's tag."
    )

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        """Adds how texts are split into words, for the predictor, which then decides per word and reads windows."""
        return super().complete(reading, configs) | {"words": words_read(reading)}

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = {name: reading[name] for name in ("tokens_column", "tags_column", "text_column", "spans_column")}
        return load_tagged_words(source, **columns, label_names=classes, split=split, config_name=config_name)

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        columns = {name: reading[name] for name in ("tokens_column", "text_column", "spans_column")}
        return load_untagged_words(source, **columns, label_names=classes, split=split, config_name=config_name)

    def check(self, arguments: TaskArguments, training: DistillationTrainingArguments) -> None:
        has_unlabelled = arguments.unlabelled_file or arguments.unlabelled_split
        if has_unlabelled and training.alpha_kl and training.kl_positions == "labels":
            raise ValueError(
                "The unlabelled data has no labels, but kl_positions='labels' compares student and teacher only at "
                "words with a label: set kl_positions='attended'."
            )

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        return encode_tagged_words(rows, processor, *_window(reading))

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForTokenClassification(processor)

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        classes = evaluated.predictions.argmax(-1)
        predictions, first = [], 0
        for windows, words in zip(
            tokenize_in_windows(rows["text"], processor, *_window(reading)), rows["starts"], strict=True
        ):
            tokens = deciding_tokens(windows, words)
            predictions.append(labels_at(tokens, classes[first : first + len(windows)], _names(rows)))
            first += len(windows)
        return self.metrics(predictions, rows, reading)

    def inputs(self, rows: Dataset) -> list:
        return list(rows["text"])

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[list[str | None]]:
        names = _names_in_words_of(classes or predictor.labels, predictor)
        encodings = _in_windows(predictor.encoder, reading["stride"]).encode(self.inputs(rows))
        return [
            classify_words(outputs["logits"], encoding, words, names)[0]
            for outputs, encoding, words in zip(predictor.run(encodings, done), encodings, _words(rows), strict=True)
        ]

    def metrics(self, predictions: Labels, rows, reading, teacher: Labels | None = None) -> dict[str, float]:
        measured = {}
        if rows is not None and any(label != IGNORE_INDEX for own in rows["labels"] for label in own):
            measured = tagging_metrics(predictions, _labels(rows), _names(rows))
        if teacher is not None:
            names = {label for labels in (predictions, teacher) for own in labels for label in own if label is not None}
            measured |= tagging_fidelity(predictions, teacher, sorted(names))
        return measured

    def scores_of_units(self, metric, predictions, rows, reading, teacher) -> np.ndarray | None:
        if metric not in ("f1", "accuracy"):
            return None
        return tagging_counts(metric, predictions, _labels(rows), _names(rows))

    def differences(self, predictions: Labels, teacher: Labels, reading: Reading) -> list[float]:
        """The number of words with different tags."""
        return [
            float(sum(one != other for one, other in zip(own, others, strict=True)))
            for own, others in zip(predictions, teacher, strict=True)
        ]

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        (labels,) = _labels(rows.select([row]))
        return self.words_of_prediction(labels, rows, row, reading, classes)

    def words_of_prediction(self, prediction, rows, row, reading, classes) -> str:
        text, (words,) = rows[row]["text"], _words(rows.select([row]))
        groups = group_words(prediction, classes or _names(rows))
        found = [f"{text[words[first][0] : words[last][1]]} ({kind})" for kind, first, last in groups]
        return ", ".join(found) or "none"


def _window(reading: Reading) -> tuple[int, int]:
    """Tokens in a window, and in both of two neighbouring windows."""
    max_length, stride = reading["max_length"], reading["stride"]
    return max_length, default_stride(max_length) if stride is None else stride


def _in_windows(encoder: TextEncoder, stride: int | None) -> TextEncoder:
    """An encoder that reads long texts in windows, also for a model that was not trained by this task."""
    stride = default_stride(encoder.max_length) if stride is None else stride
    if encoder.stride == stride:
        return encoder
    own = Tokenizer.from_str(encoder.tokenizer.to_str())  # a tokenizer object holds only one stride
    return dataclasses.replace(encoder, tokenizer=own, truncation="head", stride=stride)


def _names_in_words_of(classes: Sequence[str], predictor: Predictor) -> list[str]:
    """The name in `classes` of each class of a model, which may have another order, or numbers for names."""
    names = [*predictor.labels]
    for name, column in zip(classes, columns_by_name(predictor.labels, classes, predictor.name), strict=True):
        names[column] = name
    return names


def _names(rows: Dataset) -> list[str]:
    return rows.features["labels"].feature.names


def _labels(rows: Dataset) -> list[list[str | None]]:
    names = _names(rows)
    return [[None if label == IGNORE_INDEX else names[label] for label in own] for own in rows["labels"]]


def _words(rows: Dataset) -> list[list[Span]]:
    return [[*zip(*own, strict=True)] for own in zip(rows["starts"], rows["ends"], strict=True)]
