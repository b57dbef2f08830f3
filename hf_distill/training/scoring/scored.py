"""Which positions of a batch are scored, attended and labelled."""

from dataclasses import dataclass
from functools import cached_property

import torch

MASKED_LOGIT = -1e30
"""The logit of a class that a position cannot have. Finite, so that a difference of two of them is 0 and not NaN."""


@dataclass(frozen=True)
class Scored:
    """What is scored in one batch.

    Attributes:
        attended: `[batch, length]`, True where there is no padding: the items of the cosine loss. `[batch, 1]` for
            images and audio, where an example counts as one item.
        positions: True where the head's output is scored: the items of the KL loss. `[batch, length]` for a head with a
            distribution per token, and what is scored follows the positions that are True; else `[scored]`.
        labelled: True where there is a label too: the items of the task loss. Of the shape of `labels`.
        labels: like `positions`, or `[scored, classes]`; None if the batch has no labels.
        known_indices: `[scored]`, for a head with a distribution per token: where `positions` is True, counted through
            the batch; None if that has still to be found out, for which a device has to be waited for.
    """

    attended: torch.Tensor
    positions: torch.Tensor
    labelled: torch.Tensor
    labels: torch.Tensor | None
    known_indices: torch.Tensor | None = None

    @property
    def per_token(self) -> bool:
        return self.positions.ndim == 2

    @property
    def scored_labels(self) -> torch.Tensor | None:
        """`[scored]` or `[scored, classes]`: the labels of the scored positions, in their order."""
        return self.select(self.labels) if self.per_token and self.labels is not None else self.labels

    @cached_property
    def indices(self) -> torch.Tensor:
        """`[scored]`, as `known_indices`; found out once for student, teacher and labels."""
        if self.known_indices is not None:
            return self.known_indices
        with torch.inference_mode(False):  # the teacher may be the first to ask
            return self.positions.flatten().nonzero().squeeze(1)

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """`[scored, ...]` out of `[batch, length, ...]`, for a head with a distribution per token.

        Raises:
            ValueError: if the values are not those of the batch's tokens.
        """
        if values.shape[:2] != self.positions.shape:
            raise ValueError(
                f"The model gives values {list(values.shape)} for tokens {list(self.positions.shape)}, so it is not "
                f"known which of them belong to which: pad the rows to the length that the model always gives."
            )
        return values.flatten(0, 1)[self.indices.to(values.device)]
