"""The likeliest tokens of a teacher's vocabulary, and the probability of all others."""

from dataclasses import dataclass

import torch

from hf_distill.training.scoring.scored import MASKED_LOGIT


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


def log_tail(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The logarithm of the probability of all tokens but some.

    Args:
        log_probs: `[scored, vocabulary]`.
        ids: `[scored, k]`, the tokens that are left out.

    Returns:
        `[scored, 1]`, at least -1e30, which it is where no other token is left.
    """
    return log_probs.scatter(1, ids, MASKED_LOGIT).logsumexp(1, keepdim=True).clamp(min=MASKED_LOGIT)
