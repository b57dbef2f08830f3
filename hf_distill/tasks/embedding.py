"""Embedding: one vector per text, for search, clustering and similarity."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, DatasetDict
from peft import TaskType
from transformers import AutoTokenizer, DataCollatorWithPadding, EvalPrediction, PreTrainedConfig, PreTrainedModel

from hf_distill.data.texts_to_embed import FEATURES, load_texts_to_embed
from hf_distill.deployment.embeddings import embed
from hf_distill.deployment.predictor import Predictor
from hf_distill.embedding import EmbeddingModel, fit_dense
from hf_distill.evaluation.embedding import agreement_metrics, retrieval_metrics, similarity_metrics
from hf_distill.evaluation.report import Metric
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Done, Reading, Task
from hf_distill.training import DistillationTrainingArguments
from hf_distill.training.scoring.find_head import is_base_class

NEAREST = 10
"""Neighbours of a text whose overlap is measured."""

FITTED = 4
"""Texts for each of the student's dimensions that a map to the teacher's vectors is fitted on."""

PART = 1024
"""Texts after which progress is shown."""


@dataclass
class EmbeddingArguments(TaskArguments):
    """Model, teacher and texts of an embedding model's training.

    `DistillationTrainingArguments` holds everything else. If its loss weights are the defaults, `alpha_embedding=1.0`
    replaces them.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> EmbeddingArguments(train_file="sentences.txt", test_file="sts.csv", num_layers=3)
    """

    task: str = field(default="embedding", metadata={"help": "The task: a name that `hf-distill tasks` lists."})
    text_column: str = field(
        default="text", metadata={"help": "Column with texts, or with the first text of each scored pair."}
    )
    text_pair_column: str = field(
        default="text_pair", metadata={"help": "Column with the second text of each scored pair."}
    )
    score_column: str = field(default="score", metadata={"help": "Column with the similarity of each pair, a number."})
    query_column: str = field(default="query", metadata={"help": "Column with queries, for retrieval."})
    positive_column: str = field(
        default="positive", metadata={"help": "Column with the relevant documents of a query: one text or a list."}
    )
    documents_column: str = field(
        default="documents", metadata={"help": "Column with a list of documents, in place of positive_column."}
    )
    scores_column: str = field(
        default="scores", metadata={"help": "Column with the relevance of each document of documents_column."}
    )
    query_prompt: str = field(
        default="", metadata={"help": "Put in front of queries, such as 'query: '. Saved with the model."}
    )
    document_prompt: str = field(
        default="",
        metadata={
            "help": "Put in front of documents and of all other texts, such as 'passage: '. Saved with the model."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "For a model_name_or_path that is not a SentenceTransformer: how its hidden states become one "
            "vector, such as mean, cls or lasttoken."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens per text; the end of a longer text is removed. Saved with the model. "
            "Default: what model and teacher were trained with."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.pooling is not None and self.model_name_or_path is None:
            raise ValueError(
                f"pooling={self.pooling!r} has no effect on a student that is cut from the teacher: leave it out, or "
                f"give a model_name_or_path."
            )


class Embedding(Task):
    """A row is a text. Its prediction is its vector."""

    name = "embedding"
    pipeline_tag = "sentence-similarity"
    summary = "a vector for each text, for search and similarity"
    data = "text; or text, text_pair, score; or query, positive"
    example = """\
teacher_model_name_or_path: sentence-transformers/all-MiniLM-L6-v2
num_layers: 3
dataset_name: sentence-transformers/all-nli
dataset_config_name: pair
train_split: train
text_column: anchor
learning_rate: 5.0e-4
output_dir: outputs/student
"""
    arguments = EmbeddingArguments
    auto_class = EmbeddingModel
    head = "embedding"
    lora_task_type = TaskType.FEATURE_EXTRACTION
    metric_packages = ("sentence_transformers", "scipy.stats")
    extra = "embeddings"
    quality: ClassVar[Mapping[str, Metric]] = {
        "spearman_cosine": Metric("Spearman with the scores"),
        "ndcg@10": Metric("NDCG@10"),
        "mrr@10": Metric("MRR@10"),
        "recall@10": Metric("recall@10"),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "cosine_to_teacher": Metric("cosine with the teacher's vector"),
        "overlap@10": Metric("overlap with the teacher's ten nearest texts"),
        "spearmanr_to_teacher": Metric("Spearman with the teacher's similarities"),
    }
    notes = (
        "Similarities are cosines. Spearman with the scores is the rank correlation over the pairs. NDCG@10, MRR@10 "
        "and recall@10 are means over the queries, each searched in all documents of the data."
    )
    searched_losses: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "vectors": {"alpha_kl": 0.0, "alpha_task": 0.0, "alpha_cos": 0.0, "alpha_embedding": 1.0},
        "vectors and similarities": {
            "alpha_kl": 0.0,
            "alpha_task": 0.0,
            "alpha_cos": 0.0,
            "alpha_embedding": 1.0,
            "alpha_similarity": 0.1,
        },
    }
    has_classes = False
    text_columns = ("text",)
    reads_no_head = True
    has_own_head = False

    def with_default_weights(self, training: DistillationTrainingArguments) -> DistillationTrainingArguments:
        """The losses over logits do not suit vectors, so defaults become those of embedding models."""
        fields = training.__dataclass_fields__
        weights = {f"alpha_{name}" for name in training.loss_weights}
        own = {"alpha_embedding", "alpha_similarity", "alpha_anchor"}
        if any(getattr(training, name) != fields[name].default for name in weights - own):
            return training
        training = copy.copy(training)
        training.alpha_kl = training.alpha_task = training.alpha_cos = 0.0
        if all(getattr(training, name) == fields[name].default for name in own):
            training.alpha_embedding = 1.0
        return training

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = {name: value for name, value in reading.items() if name.endswith("_column")}
        return load_texts_to_embed(source, **columns, split=split, config_name=config_name), None

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        column = reading["text_column"]
        return load_texts_to_embed(source, "texts", column, split=split, config_name=config_name)

    def hold_out(self, rows: Dataset, share: float, seed: int) -> DatasetDict | Mapping[str, Dataset]:
        units = self.units(rows)
        if units.size < len(rows):
            raise ValueError(
                f"validation_share={share} cannot split queries and documents, which belong together: give a "
                f"validation_file."
            )
        if units.shape[1] == 1:
            return super().hold_out(rows, share, seed)
        pairs = np.random.default_rng(seed).permutation(units)
        number = max(1, round(share * len(pairs)))
        parts = {"train": np.sort(pairs[number:], axis=0), "test": np.sort(pairs[:number], axis=0)}
        return {name: _only_pairs(rows, own) for name, own in parts.items()}

    def head_options(self, classes, reading) -> dict[str, Any]:
        return {"pooling": reading["pooling"]}

    def has_head(self, config: PreTrainedConfig) -> bool:
        """True for a model without another head. Whether a pooling is known is checked when it is loaded."""
        return any(map(is_base_class, config.architectures or []))

    def load_processor(self, name: str, model: PreTrainedModel) -> Any:
        return model.tokenizer if isinstance(model, EmbeddingModel) else AutoTokenizer.from_pretrained(name)

    def prepare_model(self, model, processor, reading, training):
        prompts = {"query": reading["query_prompt"], "document": reading["document_prompt"]}
        if any(prompts.values()):
            model.settings["prompts"] = {**model.settings.get("prompts", {}), **prompts}
        return model

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        def encode(batch: Mapping[str, list]) -> Mapping[str, list]:
            return processor(_texts(batch, reading), truncation=True, max_length=reading["max_length"])

        return rows.map(encode, batched=True, remove_columns=[*FEATURES], desc="Tokenising")

    def fit_to_teacher(self, student, teacher, rows, reading):
        """A student with narrower vectors gets a Dense module, so that they are in the teacher's space."""
        if student.embedding_width == teacher.embedding_width:
            return student
        fitted = rows.take(min(len(rows), FITTED * student.embedding_width))
        return fit_dense(student, teacher, _texts(fitted, reading))

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorWithPadding(processor)

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        return self.metrics(evaluated.predictions, rows, reading)

    def inputs(self, rows: Dataset) -> list:
        return rows["text"][:]

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[np.ndarray]:
        texts, roles = self.inputs(rows), np.array(rows["role"][:])
        vectors: list[Any] = [None] * len(texts)
        for role in sorted({*roles}):
            indices = np.flatnonzero(roles == role).tolist()
            for start in range(0, len(indices), PART):
                part = indices[start : start + PART]
                found = embed(predictor, [texts[index] for index in part], _prompt(role, reading))
                for index, vector in zip(part, found, strict=True):
                    vectors[index] = vector
                if done is not None:
                    done(len(part))
        return vectors

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        vectors, measured = np.asarray(predictions), {}
        if rows is not None:
            roles = np.array(rows["role"][:])
            linked = np.flatnonzero(np.isin(roles, ("second", "document")))
            first = vectors[: len(vectors) - len(linked)]
            if (roles == "second").any():
                scores = [own[0] for own in rows.select(linked)["scores"]]
                measured = similarity_metrics(first, vectors[linked], scores)
            elif len(linked):
                measured = retrieval_metrics(first, vectors[linked], _relevant(rows.select(linked), len(first)))
        if teacher is not None and len(vectors) > NEAREST:
            measured |= agreement_metrics(vectors, np.asarray(teacher), NEAREST)
        return measured

    def units(self, rows: Dataset) -> np.ndarray:
        """Scored pairs are two texts, of which all first ones come before all second ones."""
        roles = np.array(rows["role"][:])
        num_pairs = int((roles == "second").sum())
        if num_pairs:
            return np.arange(len(rows)).reshape(2, num_pairs).T
        return np.flatnonzero(roles != "document")[:, None]

    def scores_of_units(self, metric, predictions, rows, reading, teacher) -> np.ndarray | None:
        vectors, roles = np.asarray(predictions), np.array(rows["role"][:])
        if metric == "cosine_to_teacher":
            cosines = 1 - np.array(self.differences(predictions, teacher, reading))
            return cosines[self.units(rows)].mean(1)
        if not (roles == "document").any() or metric not in self.quality:
            return None
        documents = np.flatnonzero(roles == "document")
        queries = vectors[: len(vectors) - len(documents)]
        relevant = _relevant(rows.select(documents), len(queries))
        measured = (
            retrieval_metrics(query[None], vectors[documents], [own])
            for query, own in zip(queries, relevant, strict=True)
        )
        return np.array([own[metric] for own in measured])

    def differences(self, predictions, teacher, reading) -> list[float]:
        """One minus the cosine of a text's vectors; 0 if they differ in width."""
        own, other = np.asarray(predictions), np.asarray(teacher)
        if own.shape != other.shape:
            return [0.0] * len(own)
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
        return (1 - (own * other).sum(1) / lengths).tolist()

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return rows[row]["role"]

    def words_of_prediction(self, prediction, rows, row, reading, classes) -> str:
        return f"{len(prediction)} numbers, length {np.linalg.norm(prediction):.3g}"


def _only_pairs(rows: Dataset, pairs: np.ndarray) -> Dataset:
    """Some pairs of texts, `[pairs, 2]`: all first texts, then all second ones, each with its new partner."""
    own = rows.select(pairs.T.ravel())
    columns = {name: own[name][:] for name in FEATURES}
    columns["partners"] = columns["partners"][: len(pairs)] + [[number] for number in range(len(pairs))]
    return Dataset.from_dict(columns, features=FEATURES)


def _texts(rows: Dataset | Mapping[str, list], reading: Reading) -> list[str]:
    """Texts with the prompts of their roles."""
    return [f"{_prompt(role, reading)}{text}" for text, role in zip(rows["text"], rows["role"], strict=True)]


def _prompt(role: str, reading: Reading) -> str:
    return reading["query_prompt" if role == "query" else "document_prompt"]


def _relevant(documents: Dataset, num_queries: int) -> list[dict[int, float]]:
    """For each query, the relevance of documents by index."""
    relevant: list[dict[int, float]] = [{} for _ in range(num_queries)]
    for document, (queries, scores) in enumerate(zip(documents["partners"], documents["scores"], strict=True)):
        for query, score in zip(queries, scores, strict=True):
            relevant[query][document] = score
    return relevant
