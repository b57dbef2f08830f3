"""The scored, attended and labelled positions of a batch."""

from dataclasses import dataclass
from functools import cached_property

import torch

from hf_distill.training.scoring.groups import in_groups

MASKED_LOGIT = -1e30
"""The logit of an impossible class. Finite, so that the difference of two of them is 0, not NaN."""


@dataclass(frozen=True)
class Scored:
    """The scored, attended and labelled positions of one batch.

    Attributes:
        attended: True where there is no padding, the items of the cosine loss. `[batch, length]`; `[batch, 1]` for
            images and audio, where an example is one item.
        positions: True where the head is scored, the items of the KL loss. `[batch, length]` for a head with one
            distribution per token: the positions that are True are scored, in their order. Else `[scored]`.
        labelled: True where there is also a label, the items of the task loss. Same shape as `labels`.
        labels: same shape as `positions`, or `[scored, classes]`; None if the batch has no labels.
        known_indices: `[scored]`, for a head with one distribution per token: the indices in the flattened batch where
            `positions` is True. None if they are unknown; computing them waits for the device.
        encoder_attended: for an encoder-decoder, the same as `attended` for the positions of the encoder.
        candidates: for grouped rows, True where a row has a candidate, `[groups, candidates]`. The scored positions are
            these candidates, group by group. None if rows are not grouped.
    """

    attended: torch.Tensor
    positions: torch.Tensor
    labelled: torch.Tensor
    labels: torch.Tensor | None
    known_indices: torch.Tensor | None = None
    encoder_attended: torch.Tensor | None = None
    candidates: torch.Tensor | None = None

    @property
    def per_token(self) -> bool:
        return self.positions.ndim == 2

    @property
    def scored_labels(self) -> torch.Tensor | None:
        """The labels of the scored positions, `[scored]` or `[scored, classes]`, in their order."""
        return self.select(self.labels) if self.per_token and self.labels is not None else self.labels

    @cached_property
    def indices(self) -> torch.Tensor:
        """The same as `known_indices`, `[scored]`, computed once for student, teacher and labels."""
        if self.known_indices is not None:
            return self.known_indices
        with torch.inference_mode(False):  # the first caller may be the teacher, in inference mode
            return self.positions.flatten().nonzero().squeeze(1)

    def attended_in(self, stack: str) -> torch.Tensor:
        """True where there is no padding, for the positions of a stack of layers."""
        return self.encoder_attended if stack == "encoder" and self.encoder_attended is not None else self.attended

    def in_groups(self, values: torch.Tensor, padding: float) -> torch.Tensor:
        """Puts `[scored]` values into groups: `[groups, candidates]`, with `padding` where there is no candidate."""
        assert self.candidates is not None  # the loss has checked that rows are grouped
        return in_groups(values, self.candidates, padding)

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """Selects `[scored, ...]` from `[batch, length, ...]`, for a head with one distribution per token.

        Raises:
            ValueError: if the values do not match the batch's tokens.
        """
        if values.shape[:2] != self.positions.shape:
            raise ValueError(
                f"The model returns values {list(values.shape)} for tokens {list(self.positions.shape)}, so they "
                f"cannot be matched: pad the rows to the length that the model always returns."
            )
        return values.flatten(0, 1)[self.indices.to(values.device)]
