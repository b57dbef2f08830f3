"""Question answering: the part of a context that answers a question, or that there is none."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from peft import TaskType
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hf_distill.answers import best_answers
from hf_distill.data.question_tokens import QuestionTokenizer, encode_questions
from hf_distill.data.questions import load_questions, load_unlabelled_questions
from hf_distill.data.showing import listed_rows
from hf_distill.deployment.predictor import Predictor
from hf_distill.evaluation.question_answering import agreement_with, answer_metrics
from hf_distill.evaluation.report import Metric
from hf_distill.lengths import default_stride
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.data import noted_reading
from hf_distill.tasks.task import Done, Reading, Task

NO_ANSWER = "no answer"
"""What a report shows for an empty answer."""


@dataclass
class QuestionAnsweringArguments(TaskArguments):
    """Model, teacher and data of a question answering training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> QuestionAnsweringArguments(train_file="train-v2.0.json", unanswerable=True, max_length=384, stride=128)
    """

    task: str = field(default="question-answering", metadata={"help": "The task."})
    question_column: str = field(
        default="question", metadata={"help": "Column with the questions. Not used for files in SQuAD's format."}
    )
    context_column: str = field(
        default="context", metadata={"help": "Column with the contexts. Not used for files in SQuAD's format."}
    )
    answers_column: str = field(
        default="answers",
        metadata={
            "help": "Column with the answers, {text: [...], answer_start: [...]}, where the starts count characters "
            "from 0. Not used for files in SQuAD's format."
        },
    )
    unanswerable: bool | None = field(
        default=None,
        metadata={
            "help": "Whether questions may have no answer, as in SQuAD 2.0; the model then can say so. Saved with the "
            "model. Default: what model or teacher was trained with, else no."
        },
    )
    no_answer_threshold: float = field(
        default=0.0,
        metadata={
            "help": "With unanswerable: the model says that there is no answer if the logit of that is more than this "
            "above the logit of the best answer. Saved with the model."
        },
    )
    max_answer_tokens: int = field(default=30, metadata={"help": "Longest answer in tokens. Saved with the model."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of a question with its context. A longer context is read in overlapping "
            "windows. Saved with the model. Default: what model and teacher were trained with, else the most that both "
            "accept."
        },
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of the context that are in both of two neighbouring windows. Saved with the model. "
            "Default: a quarter of max_length."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_answer_tokens < 1:
            raise ValueError(f"max_answer_tokens={self.max_answer_tokens} must be 1 or more.")
        if self.stride is not None and self.stride < 0:
            raise ValueError(f"stride={self.stride} must be 0 or more.")
        if self.stride is not None and self.max_length is not None and 2 * self.stride >= self.max_length:
            raise ValueError(
                f"stride={self.stride} must be less than half of max_length={self.max_length}: a quarter is usual."
            )


class QuestionAnswering(Task):
    name = "question-answering"
    pipeline_tag = "question-answering"
    summary = "the part of a context that answers a question, or that there is no answer"
    data = (
        "files in SQuAD's format (1.1 and 2.0), or question, context, answers {text: [...], answer_start: [...]}; JSON "
        "and Parquet"
    )
    example = """\
teacher_model_name_or_path: deepset/roberta-base-squad2
dataset_name: rajpurkar/squad_v2
train_split: train
test_split: validation
unanswerable: true
max_length: 384
stride: 128
output_dir: outputs/student
"""
    arguments = QuestionAnsweringArguments
    auto_class = AutoModelForQuestionAnswering
    head = "question answering"
    lora_task_type = TaskType.QUESTION_ANS
    metric_packages = ("torchmetrics.functional.text",)
    quality: ClassVar = {
        "f1": Metric("F1"),
        "exact_match": Metric("exact match"),
        "answerable_f1": Metric("F1, answerable"),
        "answerable_exact_match": Metric("exact match, answerable"),
        "unanswerable_accuracy": Metric("accuracy, unanswerable"),
    }
    fidelity: ClassVar = {
        "agreement": Metric("agreement with the teacher"),
        "f1_to_teacher": Metric("F1 to the teacher"),
    }
    notes = (
        "Exact match and F1 are those of SQuAD 2.0: case, punctuation and articles do not count, and F1 compares "
        "words. The correct answer to a question without an answer is an empty one."
    )
    has_classes = False

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        if reading["unanswerable"] is not None:
            return reading
        return reading | {"unanswerable": bool(noted_reading(configs).get("unanswerable"))}

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = (reading["question_column"], reading["context_column"], reading["answers_column"])
        rows = load_questions(source, *columns, split, config_name)
        without = [number for number, answers in enumerate(rows["answers"], start=1) if not answers]
        if without and not reading["unanswerable"]:
            raise ValueError(
                f"{source} has questions without an answer, in {listed_rows(without)}: set unanswerable=true to train "
                f"or measure a model that can say so, or remove these rows."
            )
        return rows, None

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        columns = (reading["question_column"], reading["context_column"])
        return load_unlabelled_questions(source, *columns, split, config_name)

    def encode(self, rows: Dataset, processor: PreTrainedTokenizerBase, reading: Reading) -> Dataset:
        return encode_questions(rows, processor, reading["max_length"], _stride(reading))

    def collator(self, processor: PreTrainedTokenizerBase, model: Any) -> Callable:
        tokenizer = copy.copy(processor)
        tokenizer.padding_side = "right"  # the positions of answers count from the left
        return DataCollatorWithPadding(tokenizer)

    def compute_metrics(
        self, evaluated: EvalPrediction, rows: Dataset, processor: PreTrainedTokenizerBase, reading: Reading
    ) -> dict[str, float]:
        start_logits, end_logits = evaluated.predictions
        tokenize = QuestionTokenizer(processor, reading["max_length"], _stride(reading))
        answers, first = [], 0
        for row, windows in zip(rows, tokenize(rows["question"], rows["context"]), strict=True):
            starts, ends = (
                np.concatenate([own[first + number][: len(window)] for number, window in enumerate(windows)])
                for own in (start_logits, end_logits)
            )
            answers += best_answers(windows, starts, ends, row["context"], *_limits(reading))
            first += len(windows)
        return self.metrics(answers, rows, reading)

    def inputs(self, rows: Dataset) -> list[tuple[str, str]]:
        return list(zip(rows["question"], rows["context"], strict=True))

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list:
        max_tokens, threshold = _limits(reading)
        predictor.reader = dataclasses.replace(
            predictor.reader, max_answer_tokens=max_tokens, no_answer_threshold=threshold
        )
        encoder = predictor.encoder
        if reading["stride"] is not None and encoder.truncation == "context":
            predictor.encoder = dataclasses.replace(encoder, stride=reading["stride"])
        inputs = self.inputs(rows)
        encodings = predictor.encoder.encode(inputs)
        outputs = predictor.run(encodings, done)
        return [predictor.read(*own) for own in zip(outputs, encodings, inputs, strict=True)]

    def metrics(
        self,
        predictions: Sequence[dict[str, Any]],
        rows: Dataset | None,
        reading: Reading,
        teacher: Sequence[dict[str, Any]] | None = None,
    ) -> dict[str, float]:
        answers = [own["answer"] for own in predictions]
        of_teacher = None if teacher is None else [own["answer"] for own in teacher]
        found = {} if rows is None else answer_metrics(answers, list(rows["answers"]))
        return found | ({} if of_teacher is None else agreement_with(answers, of_teacher))

    def differences(self, predictions: Sequence, teacher: Sequence, reading: Reading) -> list[float]:
        pairs = zip(predictions, teacher, strict=True)
        return [1 - agreement_with([own["answer"]], [other["answer"]])["f1_to_teacher"] for own, other in pairs]

    def words_of_input(self, rows: Dataset, row: int) -> str:
        return f"{rows[row]['question']} {rows[row]['context']}"

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return (rows[row]["answers"] or [NO_ANSWER])[0]

    def words_of_prediction(
        self, prediction: Any, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None
    ) -> str:
        return f"{prediction['answer'] or NO_ANSWER} ({prediction['score']:.2f})"


def _stride(reading: Reading) -> int:
    return default_stride(reading["max_length"]) if reading["stride"] is None else reading["stride"]


def _limits(reading: Reading) -> tuple[int, float | None]:
    """The longest answer in tokens, and the threshold for no answer; None if every question has an answer."""
    return reading["max_answer_tokens"], reading["no_answer_threshold"] if reading["unanswerable"] else None
