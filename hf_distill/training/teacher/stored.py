"""The stored teacher: reads targets from the dataset instead of running a model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hf_distill.adapters import transformers_model
from hf_distill.training.losses.base import Loss
from hf_distill.training.losses.making import how_to_leave_out
from hf_distill.training.scoring.alignment import check_alignment, head_spec
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import ScoredOutput
from hf_distill.training.scoring.groups import candidates_of
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.inputs import attended_positions, count_examples
from hf_distill.training.scoring.scored import Scored
from hf_distill.training.scoring.top_k import TopK
from hf_distill.training.teacher.columns import (
    EMBEDDINGS,
    HIDDEN_STATES,
    LOG_TAIL,
    LOGITS,
    OF_ROWS,
    SAMPLED_COUNTS,
    SAMPLED_IDS,
    SCALE,
    TARGET_COLUMNS,
    TOP_IDS,
    TOP_LOG_PROBS,
    JoinedSource,
    Source,
    join,
    vocabulary_fingerprint,
)
from hf_distill.training.teacher.importing.alignment import imported_spec
from hf_distill.training.teacher.samples import join_samples, targets_of_samples


class StoredTeacher:
    """Replaces a live `Teacher`: reads the columns that `add_teacher_targets` added.

    Args:
        source: the teacher of the targets.
        student: the student.
        tokenizer: the student's tokenizer.
        part: which part of the logits to read, and of how many; None for all. Joined targets have a part per teacher.

    Raises:
        ValueError: if the targets do not match the student or the tokenizer.
    """

    model = None  # only its outputs are known

    def __init__(
        self,
        source: Source,
        student: PreTrainedModel | PeftModel,
        tokenizer: object = None,
        part: tuple[int, int] | None = None,
    ):
        student = transformers_model(student)
        self._part = part
        self.head = find_head(student)
        own = head_spec(student)
        self.source, self.top_k, self.num_samples = source, source.top_k, source.num_samples
        self.fingerprint = None if source.is_imported else source.fingerprint
        self.head_spec = imported_spec(source, own) if source.is_imported else source.head_spec
        in_use = [vocabulary_fingerprint(tokenizer), source.vocabulary]
        if not source.reads_text:
            if None not in in_use and in_use[0] != in_use[1]:
                raise ValueError(
                    f"The tokenizer given as processing_class is not the teacher's ({source}): both models "
                    f"read the same input_ids, so both need the same tokenizer."
                )
            if own.vocab_size != self.head_spec.vocab_size and source.is_of_some_tokens:
                raise ValueError(
                    f"The student's vocabulary has {own.vocab_size} entries, but the stored targets have "
                    f"{self.head_spec.vocab_size}: cut the student with make_student(teacher)."
                )
            self._columns = check_alignment(own, self.head_spec, tokenizer)
        else:
            self._columns = check_alignment(own, replace(self.head_spec, vocab_size=own.vocab_size))
        self._reads_logits = self._reads_hidden_states = False

    def prepare_for(self, losses: Mapping[str, Loss], capture: object = None) -> None:
        """Sets which columns are read: only those that the losses need.

        Raises:
            ValueError: if the losses need targets that are not stored.
        """
        readers = {name: loss for name, loss in losses.items() if loss.reads_teacher}
        for name, loss in readers.items():
            if loss.needs.last_hidden_state and not self.source.hidden_states:
                raise ValueError(
                    f"The loss {name!r} needs the teacher's hidden states, which are not stored in the dataset: "
                    f"{how_to_leave_out(name, loss)}, or store them with add_teacher_targets(..., hidden_states=True)."
                )
            temperature = loss.state().get("temperature")
            if loss.needs.logits and temperature and self.source.temperature not in (None, temperature):
                other = f"store the targets again with add_teacher_targets(..., temperature={temperature})."
                if self.source.is_imported:
                    other = "pass a teacher_model: a few log-probabilities do not say what others would be at another."
                raise ValueError(
                    f"The loss {name!r} has temperature={temperature}, but the targets were stored at temperature "
                    f"{self.source.temperature}: set temperature={self.source.temperature}, or {other}"
                )
        self._reads_logits = any(loss.needs.logits or loss.needs.embeddings for loss in readers.values())
        self._reads_hidden_states = any(loss.needs.last_hidden_state for loss in readers.values())

    @property
    def inputs(self) -> set[str]:
        """The columns that the losses read."""
        return {
            name
            for name in self.source.columns
            if (self._reads_hidden_states if name == HIDDEN_STATES else self._reads_logits)
        }

    def state(self) -> dict[str, str]:
        """The record of the teacher in a checkpoint."""
        return {
            "teacher": self.source.teacher.split("/")[-1],
            "teacher_dtype": self.source.dtype,
            "teacher_fingerprint": self.source.fingerprint,
        }

    def collator(self, collator: Callable[[Sequence], dict]) -> Callable[[Sequence], dict]:
        """Wraps a collator so that its batches contain the targets."""
        return TargetsCollator(collator, self.head, self.source)

    def can_read(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """Whether a batch has all targets that the losses read."""
        return self.inputs <= inputs.keys()

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        scored: Scored,
        autocast: Callable[[], AbstractContextManager] | None = None,
    ) -> ScoredOutput:
        """Returns the stored outputs for a batch, in the form that `Teacher` returns."""
        if not self.can_read(inputs):
            raise ValueError(
                f"The batch has no {', '.join(sorted(self.inputs - inputs.keys()))}: without teacher_model, every row "
                f"needs the columns of add_teacher_targets."
            )
        hidden = inputs[HIDDEN_STATES].reshape(*scored.attended.shape, -1) if HIDDEN_STATES in self.inputs else None
        logits = self._logits(inputs, scored) if self._reads_logits else None
        return ScoredOutput(hidden, logits, lambda logits: logits)

    def _logits(self, inputs: Mapping[str, torch.Tensor], scored: Scored) -> torch.Tensor | TopK:
        if self.source.embedding_dtype is not None:
            embeddings = inputs[EMBEDDINGS][: len(scored.positions)]
            return embeddings * inputs[SCALE][: len(embeddings)] if SCALE in inputs else embeddings
        if self.num_samples is not None:
            return targets_of_samples(*(scored.select(inputs[name]) for name in (SAMPLED_IDS, SAMPLED_COUNTS)))
        if self.top_k is not None:
            log_probs, ids, log_tail = (scored.select(inputs[name]) for name in (TOP_LOG_PROBS, TOP_IDS, LOG_TAIL))
            return TopK.of_rounded(log_probs, ids, log_tail)
        stored = inputs[LOGITS]
        if self._part is not None:
            index, number = self._part
            stored = stored.chunk(number, dim=-1)[index]
        logits = self.head.logits_of_stored(stored, scored)
        return logits if self._columns is None else logits[:, self._columns]


class TargetsCollator:
    """A collator that removes the targets from rows, calls another collator, and adds the targets to its batch.

    Args:
        collator: the other collator. It never sees targets, and may pad on either side.
        head: the student's head.
        source: the teacher of the targets.
    """

    def __init__(self, collator: Callable[[Sequence], dict], head: Head, source: Source | JoinedSource):
        self.collator, self.head, self.source = collator, head, source

    def __call__(self, rows: Sequence[Mapping[str, object]] | Mapping[str, Sequence]) -> dict[str, torch.Tensor]:
        if isinstance(rows, Mapping):  # the dataset returns several rows as columns
            targets = {name: rows[name] for name in self.source.columns if name in rows}
            rest: Any = _without_targets(rows)
        else:
            targets = {name: [row[name] for row in rows] for name in self.source.columns if name in rows[0]}
            rest = [_without_targets(row) for row in rows]
        batch = self.collator(rest)
        if not targets:
            return batch
        self._check_documents(rest, batch)
        num_rows = len(next(iter(targets.values())))
        grouped = self.head.reads_groups_in(batch)
        if not grouped and count_examples(batch) == 1 < num_rows:
            raise ValueError(
                f"The collator joins {num_rows} rows into one, so their stored targets fit no row of the batch: load "
                f"the student with attn_implementation='sdpa' or 'eager' if the collator has SeparateDocuments, or use "
                f"a live teacher."
            )
        present = (
            attended_positions(batch) if grouped else self.head.score(batch, "attended").attended.reshape(num_rows, -1)
        )
        joined = {}
        if SAMPLED_IDS in targets:
            assert isinstance(self.source, Source)  # others cannot be joined
            assert self.source.num_samples is not None
            samples = targets.pop(SAMPLED_IDS), targets.pop(SAMPLED_COUNTS)
            joined = join_samples(*samples, present, self.source.num_samples)
        joined |= {
            name: self._of_examples(batch, values, grouped)
            if name in OF_ROWS and self.source.head_spec.logits_per_token is None
            else join(name, values, present, self.source.width_of(name))
            for name, values in targets.items()
        }
        if not self.source.complete and LOG_TAIL in joined:
            self._check_positions(batch, joined[LOG_TAIL].isnan().squeeze(-1))
        return {**batch, **joined}

    def _check_documents(self, rows: Any, batch: Mapping[str, Any]) -> None:
        """Checks that documents of packed rows are apart in the batch exactly if they were for the teacher."""
        masks = (
            rows.get("attention_mask", []) if isinstance(rows, Mapping) else [row.get("attention_mask") for row in rows]
        )
        if not self.head.per_token or all(mask is None or max(mask, default=0) <= 1 for mask in masks):
            return
        mask = batch.get("attention_mask")
        are_apart = isinstance(mask, Mapping) or (mask is not None and mask.ndim == 4)
        if are_apart == self.source.separate_documents:
            return
        if are_apart:
            raise ValueError(
                "The collator keeps the documents of a row apart, but the teacher read each row as one text: store the "
                "targets with add_teacher_targets(..., attention=SeparateDocuments(teacher))."
            )
        raise ValueError(
            "The teacher read the documents of a row apart, but the collator does not keep them apart: pass "
            "attention=SeparateDocuments(student) to DataCollatorForCausalLM."
        )

    def _of_examples(self, batch: Mapping[str, torch.Tensor], rows: Sequence, grouped: bool) -> torch.Tensor:
        """The logits `[batch, classes]`, or `[batch, candidates, classes]` of grouped rows."""
        if not grouped:
            return torch.from_numpy(np.array(rows, dtype=np.float32))
        teachers = len(self.source.sources) if isinstance(self.source, JoinedSource) else 1
        width = teachers * (self.source.head_spec.num_labels or 1)
        return join(LOGITS, rows, candidates_of(batch), width, "candidates", teachers)

    def _check_positions(self, batch: Mapping[str, torch.Tensor], lacking: torch.Tensor) -> None:
        if batch.get("labels") is not None and (self.head.score(batch).positions & lacking).any():
            raise ValueError(
                "A token has a label, but the token before it has no distribution in the imported targets: do not "
                "change labels after import_teacher_targets, not even in the collator, or leave out the labels column "
                "before it."
            )


def _without_targets(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in TARGET_COLUMNS}
