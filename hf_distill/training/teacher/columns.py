"""The columns of a data set that hold what a teacher made of its rows, and which teacher that was.

Every target of a row is one flat list, which is read ten times faster than a list of lists; `split` and `join` go from
a batch to such lists and back.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_distill.training.scoring.alignment import HeadSpec

LOGITS = "teacher_logits"
TOP_LOG_PROBS, TOP_IDS, LOG_TAIL = "teacher_top_log_probs", "teacher_top_ids", "teacher_log_tail"
HIDDEN_STATES = "teacher_hidden_states"
SOURCE = "teacher_source"

DTYPES = {LOGITS: "float32", TOP_LOG_PROBS: "float32", TOP_IDS: "int32", LOG_TAIL: "float32", HIDDEN_STATES: "float16"}
TARGET_COLUMNS = (*DTYPES, SOURCE)


@dataclass(frozen=True)
class Source:
    """Where targets are from. It is the one class name of the column `teacher_source`, and so goes wherever rows go.

    Attributes:
        teacher: its name on the Hub, or that of its folder.
        fingerprint: of its weights.
        dtype: in which it computed.
        head_spec: what its head gives.
        vocabulary: the fingerprint of its tokenizer's words; None if it had none.
        reads_text: whether it read text with its own tokenizer, rather than the tokens that the student reads.
        hidden_states: whether its last hidden states are there.
        top_k: how many tokens of a vocabulary are told apart; None where all classes are there.
        temperature: that of the log-probabilities of those tokens.
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

    def __str__(self) -> str:
        return f"{self.teacher!r} (fingerprint {self.fingerprint}, {self.dtype})"

    @property
    def columns(self) -> list[str]:
        """The names of the columns, beside that of the source."""
        of_logits = [LOGITS] if self.top_k is None else [TOP_LOG_PROBS, TOP_IDS, LOG_TAIL]
        return of_logits + [HIDDEN_STATES] * self.hidden_states

    @property
    def has_targets_per_token(self) -> bool:
        return self.hidden_states or self.head_spec.logits_per_token is not None

    def width_of(self, column: str) -> int:
        """How many numbers of a column belong to one token."""
        widths = {LOGITS: self.head_spec.logits_per_token, LOG_TAIL: 1, HIDDEN_STATES: self.head_spec.hidden_width}
        width = widths.get(column, self.top_k)
        assert width is not None  # it is one of the columns
        return width

    @property
    def features(self) -> Features:
        of_targets = {name: List(Value(DTYPES[name])) for name in self.columns}
        return Features({**of_targets, SOURCE: ClassLabel(names=[json.dumps(asdict(self), sort_keys=True)])})


def source_of(dataset: Any) -> Source | None:
    """Which teacher's targets a data set has; None if it has none.

    Raises:
        ValueError: if they were made by a version that wrote something else.
    """
    feature = (getattr(dataset, "features", None) or {}).get(SOURCE)
    if feature is None:
        return None
    try:
        values = json.loads(feature.names[0])
        return Source(**{**values, "head_spec": HeadSpec(**values["head_spec"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The column {SOURCE} does not say which teacher the targets are from ({error}): remove the columns "
            f"{', '.join(name for name in TARGET_COLUMNS if name in dataset.features)}, and call add_teacher_targets."
        ) from None


def vocabulary_fingerprint(tokenizer: object) -> str | None:
    """Tells one tokenizer's words from another's; None for what is no tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def as_arrays(dataset: Dataset) -> Dataset:
    """The data set with its targets as NumPy arrays rather than lists, unless it has a format of its own."""
    columns = [name for name in DTYPES if name in dataset.column_names]
    if not columns or dataset.format["type"] is not None:
        return dataset
    return dataset.with_format("numpy", columns=columns, output_all_columns=True)


def split(values: torch.Tensor, counts: Iterable[int], dtype: str) -> list[np.ndarray]:
    """One flat array for each row of a batch.

    Args:
        values: `[tokens, width]`, those of all rows of the batch.
        counts: `[batch]`, how many of the tokens are each row's.
        dtype: what to keep them in.
    """
    parts = values.float().cpu().split(list(counts))
    return [part.flatten().numpy().astype(dtype) for part in parts]


def join(name: str, rows: Sequence[Sequence], present: torch.Tensor, width: int) -> torch.Tensor:
    """`[batch, length, width]`: the targets of a batch's rows, each at the position of its token, 0 elsewhere.

    Args:
        name: the column.
        rows: `[batch]` flat arrays.
        present: `[batch, length]`, True for the tokens that have a target.
        width: how many numbers each has.

    Raises:
        ValueError: if a row has other tokens than it had when the teacher read it.
    """
    arrays = [np.asarray(row).reshape(-1) for row in rows]
    counts = present.sum(1).tolist()
    for array, count in zip(arrays, counts, strict=True):
        if len(array) != count * width:
            raise ValueError(
                f"A row has {name} for {len(array) / width:g} tokens, but {count} tokens: after add_teacher_targets, "
                f"neither tokenise again nor truncate, pack or mask, be it in the collator."
            )
    dtype = torch.long if name == TOP_IDS else torch.float32
    joined = torch.zeros(*present.shape, width, dtype=dtype)
    joined[present] = torch.from_numpy(np.concatenate(arrays)).to(dtype).reshape(-1, width)
    return joined
