"""What masked and causal language modelling share: documents in rows, and the perplexity of held-out texts."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from hf_distill.data import SeparateDocuments, load_corpus, pack_documents, truncate_documents
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import Window, windows_of
from hf_distill.evaluation.report import Metric
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Done, Reading, Task
from hf_distill.training import DistillationTrainer

Packing = Literal["documents", "full_sentences", "none"]

Documents = Literal["line", "paragraph", "document"]

TEXTS_AT_A_TIME = 8
"""Texts whose logits over the vocabulary are in memory together."""


@dataclass
class LanguageModellingArguments(TaskArguments):
    """The options of masked and of causal language modelling."""

    documents: Documents = field(
        default="line",
        metadata={
            "help": "What is a document in a text file: line, paragraph (between blank lines) or document (the whole "
            "file). In JSON and Parquet files each value of the column text is one."
        },
    )
    packing: Packing = field(
        default="documents",
        metadata={
            "help": "How documents fill the rows of max_length tokens: documents, packed without attention between "
            "them; full_sentences, packed with attention between them, as in RoBERTa; none, one truncated document per "
            "row."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens per row. Saved with the model. Default: what model and teacher were trained with, else the "
            "most that both accept."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name, choices in {"packing": get_args(Packing), "documents": get_args(Documents)}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}.")


class Predicted(NamedTuple):
    """The predicted tokens of a text.

    Attributes:
        losses: `[tokens]`, negative log-likelihood of the right token in nats.
        tokens: `[tokens]`, the most likely token.
        right: `[tokens]`, the right token.
    """

    losses: np.ndarray
    tokens: np.ndarray
    right: np.ndarray


NOTHING_READ = Predicted(np.empty(0), np.empty(0, dtype=int), np.empty(0, dtype=int))
"""The prediction for a text that is left out."""


class LanguageModelling(Task):
    """A row is a document. Its prediction is a `Predicted`."""

    has_classes = False
    has_own_head = False
    computes_metrics = False  # of logits over the vocabulary: the loss says enough
    stores_targets = False  # they take 120 bytes per token
    metric_packages = ()
    quality: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric("perplexity", ".2f", higher_is_better=False),
        "accuracy": Metric("accuracy of tokens"),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "agreement": Metric("agreement with the teacher"),
        "perplexity_ratio": Metric("perplexity, times the teacher's", ".3f", higher_is_better=False),
    }

    def load(self, source, reading, classes, *, split="train", config_name=None):
        options = where_in(source, split, config_name)
        if is_text_file(source):
            options["sample_by"] = reading["documents"]
        return load_corpus(str(source), **options), None

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        rows, _ = self.load(source, reading, classes, split=split, config_name=config_name)
        return rows

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        make = truncate_documents if reading["packing"] == "none" else pack_documents
        return make(rows, processor, reading["max_length"])

    def prepare(self, trainer: DistillationTrainer, reading: Reading) -> None:
        """Keeps the documents of a row apart, which is checked for student and teacher."""
        collator: Any = trainer.data_collator
        if reading["packing"] == "documents":
            collator.attention = separate_documents(*models_of(trainer))

    def target_options(self, teacher: PreTrainedModel, reading: Reading) -> dict[str, Any]:
        return {"attention": separate_documents(teacher)} if reading["packing"] == "documents" else {}

    def metrics_of_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        return {"perplexity": math.exp(losses["loss_task"])} if "loss_task" in losses else {}

    def inputs(self, rows: Dataset) -> list:
        return list(rows["text"])

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[Predicted]:
        own = Tokenizer.from_str(predictor.encoder.tokenizer.to_str())  # a tokenizer object holds only one stride
        max_length = min(reading["max_length"] or predictor.encoder.max_length, predictor.encoder.max_length)
        encoder = replace(predictor.encoder, tokenizer=own, max_length=max_length, truncation="head", stride=0)
        texts, predicted = self.inputs(rows), []
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            encodings = encoder.encode(texts[start : start + TEXTS_AT_A_TIME])
            for number, encoding in enumerate(encodings, start=start):
                windows = [self.scored(window, predictor, number) for window in windows_of([encoding])]
                outputs = predictor.run([window for window, _, _ in windows])
                parts = [
                    read_tokens(own["logits"], places, right)
                    for own, (_, places, right) in zip(outputs, windows, strict=True)
                ]
                predicted.append(Predicted(*map(np.concatenate, zip(*parts, strict=True))))
                if done is not None:
                    done(1)
        return predicted

    @abstractmethod
    def scored(self, window: Window, predictor: Predictor, row: int) -> tuple[Window, np.ndarray, np.ndarray]:
        """What the model reads of a window, the positions whose logits are scored, and the right token of each."""

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        whole = _joined(predictions)
        measured = {}
        if rows is not None and len(whole.losses):
            measured["perplexity"] = math.exp(whole.losses.mean())
            measured["accuracy"] = float((whole.tokens == whole.right).mean())
        if teacher is not None:
            other = _joined(teacher)
            if len(other.right) != len(whole.right) or (other.right != whole.right).any():
                raise ValueError(
                    "Student and teacher read the texts as different tokens or in parts of different length, so they "
                    "cannot be compared: use models with one tokenizer, and a max_length that both accept."
                )
            measured["agreement"] = float((whole.tokens == other.tokens).mean())
            measured["perplexity_ratio"] = math.exp(whole.losses.mean() - other.losses.mean())
        return measured

    def differences(self, predictions, teacher, reading) -> list[float]:
        """The difference of the mean losses of a text in nats."""
        return [
            abs(float(own.losses.mean() - other.losses.mean())) if len(own.losses) else 0.0
            for own, other in zip(predictions, teacher, strict=True)
        ]

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return "its tokens"

    def words_of_prediction(self, prediction, rows, row, reading, classes) -> str:
        if not len(prediction.losses):
            return "left out: too long"
        return f"perplexity {math.exp(prediction.losses.mean()):.4g}"


def where_in(source: str, split: str, config_name: str | None) -> dict[str, Any]:
    """The options of `load_corpus` that say what to read of a source."""
    path = Path(source)
    if path.is_file() or (path.is_dir() and not (path / "dataset_dict.json").exists()):
        split = "train"  # to which all files belong
    return {"split": split, **({} if config_name is None else {"name": config_name})}


def is_text_file(source: str) -> bool:
    return str(source).endswith(".txt")


def separate_documents(*models: PreTrainedModel) -> SeparateDocuments:
    """Keeps the documents of a row apart, which is checked for each model."""
    try:
        return SeparateDocuments(*models)
    except ValueError as error:
        raise ValueError(f"packing=documents does not work: {error} Set packing=full_sentences.") from error


def models_of(trainer: DistillationTrainer) -> list:
    """The student, and the teacher if it is live."""
    teacher = None if trainer.teacher is None else trainer.teacher.model
    return [trainer.model, *([] if teacher is None else [teacher])]


def read_tokens(logits: np.ndarray, places: np.ndarray, right: np.ndarray) -> Predicted:
    """What a model predicts at some positions of a text.

    Args:
        logits: `[length, vocabulary]`.
        places: `[tokens]`, the positions.
        right: `[tokens]`, the right token of each.
    """
    chosen = logits[places].astype(np.float64)
    largest = chosen.max(-1, keepdims=True, initial=-np.inf)
    sums = np.log(np.exp(chosen - largest).sum(-1)) + largest[:, 0]
    return Predicted(sums - chosen[np.arange(len(places)), right], chosen.argmax(-1), right)


def _joined(predictions: Sequence[Predicted]) -> Predicted:
    return Predicted(*map(np.concatenate, zip(*predictions, strict=True)))
