"""Some tokens of the teacher, the most likely or sampled ones, and the probability of all others."""

from dataclasses import dataclass

import torch

from hf_distill.training.scoring.scored import MASKED_LOGIT


@dataclass(frozen=True)
class TopK:
    """Stored targets of a language model: the k most likely tokens per position, and the probability of all others.

    For sampled targets, the k slots have the tokens that were drawn, with their shares of the draws. Unused slots and
    all other tokens have the log-probability -1e30.

    Attributes:
        log_probs: `[scored, k]`, log-probabilities at the temperature of the loss.
        ids: `[scored, k]`, token ids.
        log_tail: `[scored]`, the logarithm of the remaining probability. It is finite.
    """

    log_probs: torch.Tensor
    ids: torch.Tensor
    log_tail: torch.Tensor

    @classmethod
    def of_rounded(cls, log_probs: torch.Tensor, ids: torch.Tensor, log_tail: torch.Tensor) -> "TopK":
        """Targets whose log-probabilities were rounded, scaled so that each position's probabilities sum to 1 again.

        With a smaller sum the KL divergence could be negative.

        Args:
            log_probs: `[scored, k]`.
            ids: `[scored, k]`.
            log_tail: `[scored, 1]`.
        """
        events = torch.cat([log_probs, log_tail], dim=1).float().log_softmax(1)
        return cls(events[:, :-1], ids, events[:, -1])

    def __getitem__(self, piece: slice) -> "TopK":
        return TopK(self.log_probs[piece], self.ids[piece], self.log_tail[piece])


def log_tail(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The logarithm of the probability of all tokens except `ids`.

    Args:
        log_probs: `[scored, vocabulary]`, log-probabilities.
        ids: `[scored, k]`, the tokens to leave out.

    Returns:
        `[scored, 1]`, at least -1e30. It is -1e30 if no token remains.
    """
    return log_probs.scatter(1, ids, MASKED_LOGIT).logsumexp(1, keepdim=True).clamp(min=MASKED_LOGIT)
