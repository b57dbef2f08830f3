"""The mean of several teachers' outputs, as logits that a loss reads like those of one teacher."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F


def mean_of_logits(logits: Iterable[torch.Tensor], weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """The weighted mean of the logits, in fp32.

    For classes this is the geometric mean of the teachers' softened distributions, normalised again, at any
    temperature.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Args:
        logits: `[scored, classes]` of each teacher. They are taken one at a time, so only one needs to exist.
        weights: `[scored, teachers]`, or `[1, teachers]` for all positions. They sum to 1. A teacher with weight 0
            has no effect, even if its logits are not finite.
        temperature: ignored.

    Returns:
        `[scored, classes]`.

    Example:
        >>> one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> mean_of_logits([one, other], torch.tensor([[0.5, 0.5]]), temperature=2.0)
        tensor([[1.0000, 0.5000]])
    """
    total: Any = 0.0
    for own, weight in zip(logits, weights.split(1, dim=1), strict=True):
        total = total + (weight * own.float()).masked_fill(weight == 0, 0.0)
    return total


def mean_of_probabilities(logits: Iterable[torch.Tensor], weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """The logits whose softened distribution is the weighted mean of the teachers' softened distributions, in fp32.

    `T * (log(sum_i w_i softmax(z_i / T)) + sum_i w_i logsumexp(z_i / T))`. The second term is the same for all classes,
    so it does not change the distribution. Because of it, the mean of equal logits is these logits.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Args:
        logits: `[scored, classes]` of each teacher. They are taken one at a time, so only one needs to exist.
        weights: `[scored, teachers]`, or `[1, teachers]` for all positions. They sum to 1. A teacher with weight 0
            has no effect, even if its logits are not finite.
        temperature: the temperature at which the distributions are averaged.

    Returns:
        `[scored, classes]`. Dividing by the temperature and applying softmax gives the mean.

    Example:
        >>> sure, unsure = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> mean_of_probabilities([sure, unsure], torch.tensor([[0.5, 0.5]]), temperature=1.0).softmax(-1)
        tensor([[0.7000, 0.3000]])
    """
    log_mean: Any = None
    shift: Any = 0.0
    for own, weight in zip(logits, weights.split(1, dim=1), strict=True):
        softened = own.float() / temperature
        normaliser = softened.logsumexp(-1, keepdim=True)
        shift = shift + (weight * normaliser).masked_fill(weight == 0, 0.0)
        log_mean = _add_log(log_mean, softened - normaliser, weight)
    return temperature * (log_mean + shift)


def mean_of_bernoullis(logits: Iterable[torch.Tensor], weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """For multi-label classification: the logits whose softened probabilities are the weighted means, in fp32.

    `T * logit(sum_i w_i sigmoid(z_i / T))`.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, with two classes for each label

    Args:
        logits: `[scored, classes]` of each teacher. They are taken one at a time, so only one needs to exist.
        weights: `[scored, teachers]`, or `[1, teachers]` for all positions. They sum to 1. A teacher with weight 0
            has no effect, even if its logits are not finite.
        temperature: the temperature at which the probabilities are averaged.

    Returns:
        `[scored, classes]`. Dividing by the temperature and applying a sigmoid gives the mean.

    Example:
        >>> yes, unsure = torch.tensor([[0.9]]).logit(), torch.tensor([[0.5]]).logit()
        >>> mean_of_bernoullis([yes, unsure], torch.tensor([[0.5, 0.5]]), temperature=1.0).sigmoid()
        tensor([[0.7000]])
    """
    log_yes: Any = None
    log_no: Any = None
    for own, weight in zip(logits, weights.split(1, dim=1), strict=True):
        softened = own.float() / temperature
        log_yes = _add_log(log_yes, F.logsigmoid(softened), weight)
        log_no = _add_log(log_no, F.logsigmoid(-softened), weight)
    return temperature * (log_yes - log_no)


def _add_log(log_sum: torch.Tensor | None, log_probs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`log(exp(log_sum) + weight * exp(log_probs))`. Nothing is added where the weight is 0."""
    own = (log_probs + weight.log()).masked_fill(weight == 0, -torch.inf)
    return own if log_sum is None else torch.logaddexp(log_sum, own)


Mean = Callable[[Iterable[torch.Tensor], torch.Tensor, float], torch.Tensor]

MEANS: dict[str, dict[str, Mean]] = {
    "probabilities": {
        "categorical": mean_of_probabilities,
        "binary": mean_of_bernoullis,
        "real": mean_of_logits,
    },
    "logits": {
        "categorical": mean_of_logits,
        "binary": mean_of_logits,
        "real": mean_of_logits,
    },
}
"""Means by `teacher_mean` and by what the logits describe (`Head.distribution`)."""
