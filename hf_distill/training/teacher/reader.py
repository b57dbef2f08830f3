"""Runs the teacher on the rows of a dataset, in batches of similar length."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from hf_distill.data import SeparateDocuments
from hf_distill.training.scoring import pieces
from hf_distill.training.scoring.alignment import named_inputs
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward
from hf_distill.training.scoring.groups import candidates_of, tokens_of
from hf_distill.training.scoring.inputs import attended_positions
from hf_distill.training.scoring.scored import Scored
from hf_distill.training.scoring.top_k import log_tail
from hf_distill.training.scoring.widths import vocab_size
from hf_distill.training.teacher.columns import (
    HIDDEN_STATES,
    LEAST_LOG_PROB,
    LOG_TAIL,
    LOGITS,
    TOP_IDS,
    TOP_LOG_PROBS,
    Source,
    split,
    stored_embeddings,
)
from hf_distill.training.teacher.samples import counted, draw, uniform_numbers

Targets = dict[str, list[np.ndarray]]
"""For each column, one flat array per row."""


@contextmanager
def placed(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> Iterator[PreTrainedModel]:
    """The model, or a copy in another dtype, on a device and in evaluation mode. Then its state is restored."""
    was_training, came_from = model.training, model.device
    is_placed = getattr(model, "hf_device_map", None) is not None
    used = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    try:
        if not is_placed:
            used.to(device)
        yield used.eval()
    finally:
        if used is model and not is_placed:
            model.to(came_from)
        model.train(was_training)


class TargetReader:
    """Computes the teacher's targets for rows.

    Args:
        model: the teacher.
        source: which targets to compute.
        processing_class: pads the batches, usually the teacher's tokenizer.
        text_columns: columns of text to tokenise with it; empty if the rows are already tokenised.
        batch_size: rows per forward.
        dtype: the dtype to compute in.
        attention: keeps the documents of a packed row apart; None reads a row as one text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        source: Source,
        processing_class: Any,
        text_columns: Sequence[str],
        batch_size: int,
        dtype: torch.dtype,
        attention: SeparateDocuments | None = None,
    ):
        self.model, self.source, self.batch_size, self.dtype = model, source, batch_size, dtype
        self.processing_class, self.text_columns = processing_class, text_columns
        self.head, self.attention = find_head(model), attention
        self.collator = self.head.padding_collator(processing_class)
        self.inputs = named_inputs(model)

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """While open, the teacher is on its device, in its dtype and in evaluation mode. Then its state is restored."""
        given = self.model
        try:
            with placed(given, device, self.dtype) as self.model:
                yield
        finally:
            self.model = given

    def __call__(self, rows: Mapping[str, list], first_row: int, done: Callable[[int], object]) -> Targets:
        """Computes the targets of rows, in the order of the rows.

        Args:
            rows: lists of values by column, as a `Dataset` returns a slice.
            first_row: the position of the first of them in the dataset.
            done: called with the number of rows that have just been read.

        Returns:
            For each column, one flat array per row.

        Raises:
            FloatingPointError: if a target is not finite.
        """
        if self.text_columns:
            texts = [rows[name] for name in self.text_columns]
            rows = self.processing_class(*texts, truncation=True)
        kept = self.inputs if self.head.reads_labels else self.inputs - {*self.head.label_names}
        rows = {name: values for name, values in rows.items() if name in kept}
        first = next(iter(rows.values()))
        lengths = [tokens_of(value) for value in rows[self.model.main_input_name]]
        order = sorted(range(len(first)), key=lambda index: -lengths[index])  # what needs most memory comes first

        targets: dict[str, list[Any]] = {name: [None] * len(first) for name in self.source.columns}
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            batch = self.collator([{name: values[index] for name, values in rows.items()} for index in indices])
            for name, values in self._read(batch, [first_row + index for index in indices]).items():
                for index, value in zip(indices, values, strict=True):
                    targets[name][index] = value
            done(len(indices))
        return targets

    @torch.inference_mode()
    def _read(self, batch: Mapping[str, torch.Tensor], numbers: Sequence[int]) -> Targets:
        """The targets of a batch.

        Args:
            batch: the batch of the collator.
            numbers: `[batch]`, the positions of its rows in the dataset.
        """
        num_rows = len(numbers)
        if self.attention is not None:
            batch = self.attention(batch)
        batch = send_to_device(dict(batch), self.model.device)
        grouped = batch if self.head.reads_groups_in(batch) else None
        batch = self.head.complete(batch, self.model)
        scored = self.head.score(batch, "attended")
        inputs: dict[str, Any] = {name: values for name, values in batch.items() if name not in self.head.label_names}
        if "use_cache" in self.inputs:
            inputs["use_cache"] = False
        output, _ = scored_forward(self.model, self.model, self.head, inputs, scored)

        present = scored.attended.reshape(num_rows, -1) if grouped is None else attended_positions(grouped).flatten(1)
        tokens = present.sum(1).tolist()
        per_row = [1] * num_rows if grouped is None else candidates_of(grouped).sum(1).tolist()
        of_logits = per_row if self.source.head_spec.logits_per_token is None else tokens
        if self.source.num_samples is None:
            values = self._logits(output, scored)
        else:
            ids = self._samples(output, numbers, tokens)
            values, of_logits = counted(ids, tokens)
        if self.source.hidden_states:
            assert output.last_hidden_state is not None
            hidden = output.last_hidden_state.flatten(0, -2)  # of all tokens that the teacher read, row by row
            values[HIDDEN_STATES] = hidden[scored.attended.flatten()]
        targets = {
            name: split(value, tokens if name == HIDDEN_STATES else of_logits, self.source.dtype_of(name))
            for name, value in values.items()
        }
        for name, of_rows in targets.items():
            if not all(np.isfinite(row).all() for row in of_rows):
                raise self._not_finite(name, self.source.dtype_of(name))
        return targets

    def _logits(self, output: ScoredOutput, scored: Scored) -> dict[str, torch.Tensor]:
        """The logit targets by column, `[tokens or rows, width]`."""
        if self.source.top_k is not None:
            return self._top_k(output)
        logits = output.logits(slice(None))
        if self.source.embedding_dtype is not None:
            return stored_embeddings(logits, self.source.embedding_dtype)
        return {LOGITS: self.head.stored_logits(logits, scored)}

    def _top_k(self, output: ScoredOutput) -> dict[str, torch.Tensor]:
        top_k = self.source.top_k
        assert top_k is not None
        chunks = []
        for _, log_probs in self._log_probs(output):
            top, ids = log_probs.topk(top_k)
            chunks.append((top.clamp(min=LEAST_LOG_PROB), ids, log_tail(log_probs, ids).clamp(min=LEAST_LOG_PROB)))
        columns = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        return dict(zip((TOP_LOG_PROBS, TOP_IDS, LOG_TAIL), columns, strict=True))

    def _samples(self, output: ScoredOutput, numbers: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Tokens drawn from the teacher's distribution, `[tokens, num_samples]`."""
        assert self.source.num_samples is not None
        uniforms = uniform_numbers(self.source.fingerprint, numbers, tokens, self.source.num_samples)
        ids = []
        for piece, log_probs in self._log_probs(output):
            if log_probs[:, 0].isnan().any():  # a softmax is NaN for all tokens or for none
                raise self._not_finite("logits", "float32")
            ids.append(draw(log_probs, uniforms[piece]))
        return torch.cat(ids)

    def _not_finite(self, name: str, dtype: str) -> FloatingPointError:
        return FloatingPointError(
            f"The teacher {self.source} returns {name} that are not finite in {dtype}: choose another dtype, such as "
            f"'bfloat16' or 'float32'."
        )

    def _log_probs(self, output: ScoredOutput) -> Iterator[tuple[slice, torch.Tensor]]:
        """The log-probabilities `[piece, vocabulary]` of one piece of the tokens after the other."""
        num_words, temperature = vocab_size(self.model.config), self.source.temperature
        assert num_words is not None  # known for every language model
        assert temperature is not None
        chunk_size = max(1, pieces.CHUNK_ELEMENTS // num_words)
        for start in range(0, len(output.head_inputs), chunk_size):
            piece = slice(start, start + chunk_size)
            yield piece, (output.logits(piece).float() / temperature).log_softmax(-1)
