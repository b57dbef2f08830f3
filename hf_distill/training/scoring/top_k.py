"""The likeliest tokens of a teacher's vocabulary, and the probability of all others."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TopK:
    """Of each row the likeliest tokens, and the mass of all others: what is stored of a teacher's vocabulary.

    Attributes:
        log_probs: `[rows, k]`, at the temperature of the loss.
        ids: `[rows, k]`, which tokens these are.
        log_tail: `[rows]`, the logarithm of what is left of the probability, at least -1e30.
    """

    log_probs: torch.Tensor
    ids: torch.Tensor
    log_tail: torch.Tensor

    def __getitem__(self, rows: slice) -> "TopK":
        return TopK(self.log_probs[rows], self.ids[rows], self.log_tail[rows])
