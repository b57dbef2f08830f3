"""Reranking: a score for each pair of a query and a document, which orders the documents of the query."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from peft import TaskType
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedConfig,
)

from hf_distill.data import (
    DataCollatorForRankings,
    encode_pairs,
    encode_rankings,
    load_rankings,
    load_unlabelled_rankings,
)
from hf_distill.data.class_labels import NUMBER, SEVERAL
from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.showing import short
from hf_distill.deployment.predictor import Predictor
from hf_distill.evaluation.ranking import ranking_metrics
from hf_distill.evaluation.report import Metric
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Done, Reading, Task
from hf_distill.tasks.text_pair_classification import READS_PAIRS
from hf_distill.training import DistillationTrainingArguments
from hf_distill.training.losses.schedules import is_on


@dataclass
class RerankingArguments(TaskArguments):
    """Model, teacher and data of a reranker's training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> RerankingArguments(train_file="queries.jsonl", test_file="judged.jsonl", num_layers=6)
    """

    task: str = field(default="reranking", metadata={"help": "The task: a name that `hf-distill tasks` lists."})
    query_column: str = field(default="query", metadata={"help": "Column with the queries."})
    positive_column: str = field(
        default="positive", metadata={"help": "Column with the relevant documents of a query: one text or a list."}
    )
    negative_column: str = field(
        default="negative",
        metadata={"help": "Column with documents that are not relevant to the query: one text or a list."},
    )
    documents_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with one document or a list of documents, in place of positive_column and "
            "negative_column. A dot reads a field of a nested column, such as passages.passage_text."
        },
    )
    scores_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the relevance of each document of documents_column: numbers of 0 or more, 0 for not "
            "relevant."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens per query and document. Of a longer pair, the end of the longer text is "
            "removed. Saved with the model. Default: what model and teacher were trained with, else the most that both "
            "accept."
        },
    )


class Scored(NamedTuple):
    """A prediction: the number of the query, and the score of a document as a logit."""

    group: int
    score: float


class Reranking(Task):
    name = "reranking"
    pipeline_tag = "text-ranking"
    summary = "a score for each query and document, which orders the documents of a query"
    data = "query, positive, negative; or query, documents, scores"
    example = """\
teacher_model_name_or_path: cross-encoder/ms-marco-MiniLM-L12-v2
dataset_name: sentence-transformers/msmarco-msmarco-distilbert-base-tas-b
dataset_config_name: triplet
train_split: train[:100000]
validation_share: 0.02
output_dir: outputs/student
"""
    arguments = RerankingArguments
    auto_class = AutoModelForSequenceClassification
    head = "sequence classification"
    lora_task_type = TaskType.SEQ_CLS
    metric_packages = ("sklearn.metrics", "scipy.stats")
    extra = "evaluation"
    quality: ClassVar[Mapping[str, Metric]] = {
        "ndcg@10": Metric("NDCG@10"),
        "mrr@10": Metric("MRR@10"),
        "map": Metric("MAP"),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "spearmanr_to_teacher": Metric("Spearman with the teacher"),
        "agreement": Metric("same first document as the teacher"),
        "overlap@10": Metric("overlap with the teacher's first ten"),
    }
    notes = (
        "All metrics are means over the queries. NDCG@10 and MRR@10 read the first ten documents of a ranking; the "
        "gain of a document is its relevance. Spearman is the rank correlation of the scores of a query."
    )
    has_classes = False
    text_columns = ("text", "text_pair")

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        """Finds what a score means: the logit of a relevance from 0 to 1, or a number if a model was trained so."""
        is_number = any(self.has_head(config) and config.problem_type == NUMBER for config in configs)
        return super().complete(reading, configs) | READS_PAIRS | {"problem_type": NUMBER if is_number else SEVERAL}

    def check(self, arguments: Any, training: DistillationTrainingArguments) -> None:
        is_labelled = arguments.train_file or arguments.train_split
        if is_on(training.loss_weights["margin"]) and not is_labelled:
            raise ValueError(
                f"There are no labels without train_file or train_split, but alpha_margin={training.alpha_margin} "
                f"needs to know the relevant documents: set alpha_margin=0. alpha_listwise learns the order of the "
                f"documents from the teacher alone."
            )

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = {name: value for name, value in reading.items() if name.endswith("_column")}
        return load_rankings(source, **columns, split=split, config_name=config_name), None

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        columns = {name: value for name, value in reading.items() if name.endswith("_column")}
        del columns["scores_column"]
        return load_unlabelled_rankings(source, **columns, split=split, config_name=config_name)

    def hold_out(self, rows: Dataset, share: float, seed: int) -> DatasetDict:
        """Holds out whole queries."""
        groups = list(dict.fromkeys(rows["group"][:]))
        held = set(Dataset.from_dict({"group": groups}).train_test_split(share, seed=seed)["test"]["group"])
        of_part: dict[str, list[int]] = {"train": [], "test": []}
        for index, group in enumerate(rows["group"][:]):
            of_part["test" if group in held else "train"].append(index)
        return DatasetDict({part: rows.select(indices) for part, indices in of_part.items()})

    def head_options(self, classes, reading) -> dict[str, Any]:
        return {
            "id2label": {0: "relevance"},
            "label2id": {"relevance": 0},
            "problem_type": reading["problem_type"],
            "ignore_mismatched_sizes": True,
        }

    def config_changes(self, reading: Reading) -> dict[str, Any]:
        return {"problem_type": reading["problem_type"]}

    def has_head(self, config: PreTrainedConfig) -> bool:
        return super().has_head(config) and config.num_labels == 1

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        """The label is the relevance; above 1 it counts as 1, because a score is the logit of a relevance up to 1."""
        labels: list = self._labels(rows, reading)
        if reading["problem_type"] != NUMBER:
            labels = [[label] for label in labels]
        rows = rows.remove_columns(["group", "labels"]).add_column("labels", labels)
        return encode_pairs(rows, processor, reading["max_length"])

    def encode_for(
        self, rows: Dataset, processor: Any, reading: Reading, training: DistillationTrainingArguments
    ) -> Dataset:
        """One row per query, with all its documents, if a loss compares the scores of a query."""
        if not training.reads_groups:
            return self.encode(rows, processor, reading)
        _check_queries(rows, training)
        rows = rows.remove_columns("labels").add_column("labels", self._labels(rows, reading))
        return encode_rankings(rows, processor, reading["max_length"])

    def _labels(self, rows: Dataset, reading: Reading) -> list[float]:
        """The relevance of each document as the head reads it."""
        if reading["problem_type"] == NUMBER:
            return rows["labels"][:]
        unknown = float(IGNORE_INDEX)
        return [unknown if math.isnan(relevance) else min(relevance, 1.0) for relevance in rows["labels"][:]]

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForRankings(processor)

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        scores, groups = np.asarray(evaluated.predictions), rows["group"][:]
        if len(scores) != len(groups):  # of rows with all documents of a query, padded
            counts = Counter(groups).values()
            scores = np.concatenate([own[:count] for own, count in zip(scores, counts, strict=True)])
        return ranking_metrics(scores, groups, rows["labels"][:])

    def inputs(self, rows: Dataset) -> list:
        return list(zip(rows["text"][:], rows["text_pair"][:], strict=True))

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[Scored]:
        scores = predictor.logits(self.inputs(rows), done)[:, 0].tolist()
        return [Scored(group, score) for group, score in zip(rows["group"][:], scores, strict=True)]

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        groups, scores = zip(*predictions, strict=True)
        labels = None if rows is None else rows["labels"][:]
        return ranking_metrics(scores, groups, labels, None if teacher is None else [own.score for own in teacher])

    def differences(self, predictions, teacher, reading) -> list[float]:
        return [abs(own.score - other.score) for own, other in zip(predictions, teacher, strict=True)]

    def words_of_input(self, rows: Dataset, row: int) -> str:
        return " | ".join(self.inputs(rows.select([row]))[0])

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return f"{rows[row]['labels']:g}"

    def words_of_prediction(self, prediction, rows, row, reading, classes) -> str:
        return f"{prediction.score:.3g}"


def _check_queries(rows: Dataset, training: DistillationTrainingArguments) -> None:
    """Checks that the losses can compare the documents of each query, before a teacher reads them.

    Raises:
        ValueError: if a query has only one document; or, for `alpha_margin`, none that is relevant or no other.
    """
    relevances: dict[int, list[float]] = {}
    for group, relevance in zip(rows["group"][:], rows["labels"][:], strict=True):
        relevances.setdefault(group, []).append(relevance)
    is_listwise, is_margin = (is_on(training.loss_weights[name]) for name in ("listwise", "margin"))
    first = 0
    for of_query in relevances.values():
        known = [relevance > 0 for relevance in of_query if not math.isnan(relevance)]
        missing = None
        if is_listwise and len(of_query) == 1:
            missing = "a second document, without which alpha_listwise has no order"
        elif is_margin and known and len(set(known)) == 1:
            missing = f"a document that is {'not ' if known[0] else ''}relevant, without which alpha_margin has no pair"
        if missing is not None:
            raise ValueError(
                f"The query {short(rows[first]['text'])} lacks {missing}: add one, remove the query, or set this "
                f"weight to 0."
            )
        first += len(of_query)
