"""The dataset columns that store a teacher's targets, and the record of which teacher computed them.

Each target of a row is one flat list, which reads ten times faster than a list of lists. `split` turns a batch into
such lists, `join` turns them into a batch.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_distill.training.scoring.alignment import HeadSpec

LOGITS = "teacher_logits"
TOP_LOG_PROBS, TOP_IDS, LOG_TAIL = "teacher_top_log_probs", "teacher_top_ids", "teacher_log_tail"
SAMPLED_IDS, SAMPLED_COUNTS = "teacher_sampled_ids", "teacher_sampled_counts"
HIDDEN_STATES = "teacher_hidden_states"
EMBEDDINGS, SCALE = "teacher_embeddings", "teacher_embedding_scale"
SOURCE = "teacher_source"

DTYPES = {
    LOGITS: "float32",
    TOP_LOG_PROBS: "float16",
    TOP_IDS: "int32",
    LOG_TAIL: "float16",
    SAMPLED_IDS: "int32",
    SAMPLED_COUNTS: "uint8",
    HIDDEN_STATES: "float16",
    EMBEDDINGS: "float16",
    SCALE: "float32",
}
"""The dtype of each column. That of ids may be smaller, see `id_dtype`; for others see `Source.dtype_of`."""

BYTES_PER_TOKEN = 120
"""The most bytes that a language model's targets take per token, unless `top_k` or `num_samples` asks for more."""

LEAST_LOG_PROB = float(np.finfo(np.float16).min)
"""The stored logarithm of a probability of 0, -65504. It is finite, and the exponential of it is exactly 0."""

OF_ROWS = (LOGITS, EMBEDDINGS, SCALE)
"""The columns with one target per row; logits may also have one per token."""

EmbeddingDtype = Literal["float32", "float16", "int8"]
"""How the vectors of an embedding model are stored. In int8, each has a scale of its own."""

TARGET_COLUMNS = (*DTYPES, SOURCE)

IMPORTED = "imported"
"""The dtype of targets that another program computed, because it is unknown."""


@dataclass(frozen=True)
class Source:
    """The teacher that targets come from, and how they were computed.

    It is stored as the only class name of the column `teacher_source`, so it stays with the rows.

    Attributes:
        teacher: name of the teacher on the Hub or of its folder.
        fingerprint: fingerprint of the teacher's weights.
        dtype: the dtype that the teacher computed in.
        head_spec: a description of the teacher's outputs.
        vocabulary: fingerprint of the tokenizer's vocabulary; None without a tokenizer.
        reads_text: whether the teacher read text with its own tokenizer, not the student's tokens.
        hidden_states: whether its last hidden states are stored.
        top_k: how many tokens of the vocabulary are stored per position; None if all logits are stored.
        temperature: temperature of the stored log-probabilities; None if logits are stored.
        complete: whether every token has a distribution. If not, only tokens whose next token has a label have one.
        revision: version of the teacher, if the targets were imported and it was given.
        settings: how the teacher was asked, if the targets were imported and it was given.
        separate_documents: whether the documents of a packed row did not see each other.
        embedding_dtype: how the vectors of an embedding model are stored; None for other models.
        num_samples: how many tokens were sampled per position; None if other targets are stored.
    """

    teacher: str
    fingerprint: str
    dtype: str
    head_spec: HeadSpec
    vocabulary: str | None
    reads_text: bool
    hidden_states: bool
    top_k: int | None
    temperature: float | None
    complete: bool = True
    revision: str | None = None
    settings: dict[str, Any] | None = None
    embedding_dtype: str | None = None
    num_samples: int | None = None
    separate_documents: bool = False

    def __str__(self) -> str:
        return f"{self.teacher!r} (fingerprint {self.fingerprint}, {self.dtype})"

    @property
    def is_imported(self) -> bool:
        """Whether another program computed the targets."""
        return self.dtype == IMPORTED

    @property
    def columns(self) -> list[str]:
        """The names of the target columns, without `teacher_source`."""
        if self.embedding_dtype is not None:
            return [EMBEDDINGS] + [SCALE] * (self.embedding_dtype == "int8")
        of_logits = [LOGITS] if self.top_k is None else [TOP_LOG_PROBS, TOP_IDS, LOG_TAIL]
        if self.num_samples is not None:
            of_logits = [SAMPLED_IDS, SAMPLED_COUNTS]
        return of_logits + [HIDDEN_STATES] * self.hidden_states

    @property
    def is_of_some_tokens(self) -> bool:
        """Whether probabilities of some tokens are stored, at one temperature, instead of logits."""
        return self.top_k is not None or self.num_samples is not None

    @property
    def has_targets_per_token(self) -> bool:
        return self.hidden_states or self.head_spec.logits_per_token is not None

    def width_of(self, column: str) -> int:
        """The number of values per token in a column; those of sampled tokens have no fixed number."""
        widths = {LOGITS: self.head_spec.logits_per_token, LOG_TAIL: 1, HIDDEN_STATES: self.head_spec.hidden_width}
        width = widths.get(column, self.top_k)
        assert width is not None  # `column` is one of `columns`
        return width

    def dtype_of(self, column: str) -> str:
        """The dtype that a column is stored in."""
        if column == SAMPLED_COUNTS and self.num_samples is not None:
            return str(np.min_scalar_type(self.num_samples))
        if column in (TOP_IDS, SAMPLED_IDS):
            assert self.head_spec.logits_per_token is not None  # known for every language model
            return id_dtype(self.head_spec.logits_per_token)
        return str(self.embedding_dtype) if column == EMBEDDINGS else DTYPES[column]

    @property
    def features(self) -> Features:
        of_targets = {name: List(Value(self.dtype_of(name))) for name in self.columns}
        return Features({**of_targets, SOURCE: ClassLabel(names=[json.dumps(asdict(self), sort_keys=True)])})


@dataclass(frozen=True)
class JoinedSource:
    """Several teachers whose logits are stored together: for each row or token, those of one teacher after the other.

    `teacher_source` has one class name for each. Hidden states, if stored, are those of the first teacher.

    Attributes:
        sources: the teachers, in the order of `join_teacher_targets`.
    """

    sources: tuple[Source, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.sources))

    @property
    def head_spec(self) -> HeadSpec:
        """A description of the first teacher's outputs."""
        return self.sources[0].head_spec

    @property
    def complete(self) -> bool:
        """Whether every token has a distribution of each teacher."""
        return all(source.complete for source in self.sources)

    @property
    def separate_documents(self) -> bool:
        """Whether the documents of a packed row did not see each other, for all teachers."""
        return all(source.separate_documents for source in self.sources)

    @property
    def columns(self) -> list[str]:
        """The names of the target columns, without `teacher_source`."""
        return self.sources[0].columns

    def width_of(self, column: str) -> int:
        """The number of values per token in a column."""
        width = self.sources[0].width_of(column)
        return width * len(self.sources) if column == LOGITS else width

    @property
    def features(self) -> Features:
        records = [feature for source in self.sources for feature in source.features[SOURCE].names]
        return Features({**self.sources[0].features, SOURCE: ClassLabel(names=records)})


def source_of(dataset: Any) -> Source | JoinedSource | None:
    """Reads which teacher, or which teachers, a dataset has targets of; None if it has no targets.

    Raises:
        ValueError: if `teacher_source` cannot be read, for instance if another version wrote it.
    """
    feature = (getattr(dataset, "features", None) or {}).get(SOURCE)
    if feature is None:
        return None
    try:
        records = [json.loads(name) for name in feature.names]
        sources = [Source(**{**values, "head_spec": HeadSpec(**values["head_spec"])}) for values in records]
        return sources[0] if len(sources) == 1 else JoinedSource(tuple(sources))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The column {SOURCE} has no readable record of the teacher ({error}): remove the columns "
            f"{', '.join(name for name in TARGET_COLUMNS if name in dataset.features)}, and call add_teacher_targets "
            f"again."
        ) from None


def id_dtype(vocab_size: int) -> str:
    """The smallest dtype for the token ids of a vocabulary, 2 or 4 bytes."""
    return "uint16" if vocab_size <= 2**16 else "int32"


def default_top_k(vocab_size: int) -> int:
    """How many tokens fit in `BYTES_PER_TOKEN`, each with its id and its log-probability, with the tail."""
    value_bytes = np.dtype(DTYPES[TOP_LOG_PROBS]).itemsize
    tail_bytes = np.dtype(DTYPES[LOG_TAIL]).itemsize
    top_k = (BYTES_PER_TOKEN - tail_bytes) // (np.dtype(id_dtype(vocab_size)).itemsize + value_bytes)
    return min(top_k, vocab_size)


def vocabulary_fingerprint(tokenizer: object) -> str | None:
    """A hash of a tokenizer's vocabulary; None for anything but a tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def as_arrays(dataset: Dataset) -> Dataset:
    """Returns targets as NumPy arrays instead of lists, unless the dataset has a format of its own."""
    columns = [name for name in DTYPES if name in dataset.column_names]
    if not columns or dataset.format["type"] is not None:
        return dataset
    return dataset.with_format("numpy", columns=columns, output_all_columns=True)


def stored_embeddings(embeddings: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """The columns that store the vectors of texts.

    Args:
        embeddings: `[texts, width]`.
        dtype: an `EmbeddingDtype`. For int8, the scale of a vector is its largest number divided by 127.
    """
    if dtype != "int8":
        return {EMBEDDINGS: embeddings}
    embeddings = embeddings.float()
    scale = embeddings.abs().amax(1, keepdim=True) / 127
    return {EMBEDDINGS: (embeddings / scale.clamp(min=torch.finfo(torch.float32).tiny)).round(), SCALE: scale}


def split(values: torch.Tensor, counts: Iterable[int], dtype: str) -> list[np.ndarray]:
    """Splits the values of a batch into one flat array per row.

    Args:
        values: `[tokens, width]`, the tokens of all rows one after the other.
        counts: `[batch]`, the number of tokens of each row.
        dtype: dtype of the arrays.
    """
    parts = values.float().cpu().split(list(counts))
    return [part.flatten().numpy().astype(dtype) for part in parts]


def join(
    name: str, rows: Sequence[Sequence], present: torch.Tensor, width: int, of: str = "tokens", teachers: int = 1
) -> torch.Tensor:
    """Joins flat arrays into one tensor, with each target at the position of its token.

    Args:
        name: the column.
        rows: `[batch]` flat arrays.
        present: `[batch, ...]`, True for tokens, or candidates, that have a target.
        width: the number of values per token.
        of: what has a target, for the error: "tokens" or "candidates".
        teachers: how many teachers a flat array has, one after the other.

    Returns:
        `[batch, ..., width]`, 0 where there is no target.

    Raises:
        ValueError: if a row has a different number of tokens or candidates than when the teacher read it.
    """
    arrays = [np.asarray(row).reshape(-1) for row in rows]
    counts = present.flatten(1).sum(1).tolist()
    for array, count in zip(arrays, counts, strict=True):
        if len(array) != count * width:
            raise changed_rows(count, name, len(array) / width, of)
    if teachers > 1:
        shape = (teachers, -1, width // teachers)
        arrays = [array.reshape(shape).transpose(1, 0, 2).reshape(-1) for array in arrays]
    values = torch.from_numpy(np.concatenate(arrays).astype(np.int64 if name == TOP_IDS else np.float32))
    joined = torch.zeros(*present.shape, width, dtype=values.dtype)
    joined[present] = values.reshape(-1, width)
    return joined


def changed_rows(count: int, column: str, stored: float, of: str = "tokens") -> ValueError:
    """The error for a row that has `count` tokens, and targets of another number of tokens."""
    return ValueError(
        f"A row has {count} {of}, but its {column} are for {stored:g} {of}: do not tokenise, truncate, pack or mask "
        f"rows after add_teacher_targets, not even in the collator."
    )
