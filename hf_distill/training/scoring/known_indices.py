"""The scored positions of a batch, found by the collator and valid as long as the batch is not changed."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_distill.training.scoring.heads import Head

SCORED_INDICES = "scored_indices"
"""The entry of a batch with the indices `[scored]` of its scored tokens in the flattened batch."""


def scored_indices(head: Head, kl_positions: str, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The scored indices of a batch, for a head with one distribution per token; None without labels."""
    return head.score(batch, kl_positions).indices if batch.get("labels") is not None else None


class KnownIndices:
    """The scored positions that the collator found, so that no step waits for the device.

    They depend on the batch's labels and mask, which an override of `compute_loss` may change. They are valid only for
    the same, unchanged tensors.

    Args:
        indices: `[scored]`, indices of the scored tokens in the flattened batch.
        batch: the batch.
    """

    def __init__(self, indices: torch.Tensor, batch: Mapping[str, torch.Tensor]):
        self.indices = indices
        self._tensors = _tensors_of(batch)
        self._versions = _versions(self._tensors)

    def fit(self, batch: Mapping[str, torch.Tensor]) -> bool:
        """Whether `batch` has the same, unchanged tensors."""
        tensors, own = _tensors_of(batch), self._tensors
        is_same = tensors.keys() == own.keys() and all(tensors[name] is own[name] for name in own)
        return is_same and _versions(self._tensors) == self._versions


_READ = ("input_ids", "inputs_embeds", "attention_mask", "labels", "decoder_input_ids", "decoder_attention_mask")
"""The entries that the scored positions depend on."""


def _tensors_of(batch: Mapping[str, Any]) -> dict[str, torch.Tensor | None]:
    tensors = {name: batch.get(name) for name in _READ}
    mask = tensors["attention_mask"]
    return {**tensors, **mask, "attention_mask": None} if isinstance(mask, Mapping) else tensors  # one per layer type


def _versions(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, int]:
    return {name: tensor._version for name, tensor in tensors.items() if tensor is not None}
