"""Which tokens of a batch are scored, as long as nobody has changed what that follows from."""

from collections.abc import Mapping

import torch

from hf_distill.training.scoring.heads import Head

SCORED_INDICES = "scored_indices"
"""In a batch: `[scored]`, which of its tokens are scored, counted through the batch."""


def scored_indices(head: Head, kl_positions: str, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """`[scored]` of a batch, for a head with a distribution per token; None without labels."""
    return head.score(batch, kl_positions).indices if batch.get("labels") is not None else None


class KnownIndices:
    """The scored positions that the collator counted, so that no device is waited for.

    They follow from the batch's labels and its mask, which an override of `compute_loss` may change: they hold for the
    very tensors that they were counted of.

    Args:
        indices: `[scored]`, which tokens of the batch are scored, counted through the batch.
        batch: the batch.
    """

    def __init__(self, indices: torch.Tensor, batch: Mapping[str, torch.Tensor]):
        self.indices = indices
        self._tensors = {name: batch.get(name) for name in _READ}
        self._versions = _versions(self._tensors)

    def fit(self, batch: Mapping[str, torch.Tensor]) -> bool:
        """Whether `batch` is the one that was counted, and has not been changed."""
        is_same = all(batch.get(name) is tensor for name, tensor in self._tensors.items())
        return is_same and _versions(self._tensors) == self._versions


_READ = ("input_ids", "inputs_embeds", "attention_mask", "labels", "decoder_input_ids", "decoder_attention_mask")
"""What scored positions follow from."""


def _versions(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, int]:
    return {name: tensor._version for name, tensor in tensors.items() if tensor is not None}
