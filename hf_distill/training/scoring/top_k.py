"""The likeliest tokens of a teacher's vocabulary, and the probability of all others."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TopK:
    """Of each scored position the likeliest tokens, and the mass of all others: what is stored of a vocabulary.

    Attributes:
        log_probs: `[scored, k]`, at the temperature of the loss.
        ids: `[scored, k]`, which tokens these are.
        log_tail: `[scored]`, the logarithm of what is left of the probability, at least -1e30.
    """

    log_probs: torch.Tensor
    ids: torch.Tensor
    log_tail: torch.Tensor

    def __getitem__(self, piece: slice) -> "TopK":
        return TopK(self.log_probs[piece], self.ids[piece], self.log_tail[piece])
