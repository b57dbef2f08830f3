"""Turns logits into the distributions that `log_probabilities.py` compares: softmax, Bernoulli, top k and the rest."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from hf_distill.training.losses.precision import at_least_fp32, in_fp64_if_few
from hf_distill.training.scoring.top_k import TopK, log_tail

OfLogProbs = Callable[..., torch.Tensor]


def over_distributions(divergence: OfLogProbs, temperature_power: int = 2) -> dict[str, Callable[..., torch.Tensor]]:
    """A divergence of log-probabilities as functions of logits, by distribution.

    Args:
        divergence: a function from `log_probabilities.py`.
        temperature_power: the divergence is multiplied by the temperature to this power, which keeps the size of its
            gradient. Near equality a divergence grows with the square of the difference of the probabilities, which
            shrinks as `1 / T`, so 2; the total variation distance grows with the difference itself, so 1.
    """
    return {
        "categorical": partial(of_softmax, divergence, temperature_power),
        "binary": partial(of_bernoulli, divergence, temperature_power),
        "top k": partial(of_top_k, divergence, temperature_power),
    }


def of_softmax(
    divergence: OfLogProbs,
    temperature_power: int,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    **parameters: float,
) -> torch.Tensor:
    """The divergence between `softmax(teacher_logits / T)` and `softmax(student_logits / T)`.

    Args:
        divergence: a function from `log_probabilities.py`.
        temperature_power: as in `over_distributions`.
        student_logits: `[scored, classes]`. Further columns, from a vocabulary that is padded further, are ignored.
        teacher_logits: `[scored, classes]`.
        temperature: divides the logits of both sides.
        **parameters: of the divergence.

    Returns:
        The sum over the scored positions in fp32, a tensor of shape `[]`.
    """
    dtype = at_least_fp32(student_logits).dtype
    student_logits, teacher_logits = in_fp64_if_few(student_logits), in_fp64_if_few(teacher_logits)
    log_probs = softmax_log_probs(student_logits, teacher_logits, temperature)
    return temperature**temperature_power * divergence(*log_probs, **parameters).to(dtype)


def of_bernoulli(
    divergence: OfLogProbs,
    temperature_power: int,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    **parameters: float,
) -> torch.Tensor:
    """The divergence between `sigmoid(teacher_logits / T)` and `sigmoid(student_logits / T)`, the mean over classes.

    Args:
        divergence: a function from `log_probabilities.py`.
        temperature_power: as in `over_distributions`.
        student_logits: `[scored, classes]`, a yes or no for each class.
        teacher_logits: `[scored, classes]`.
        temperature: divides the logits of both sides.
        **parameters: of the divergence.

    Returns:
        The sum over the scored positions, computed in fp32, a tensor of shape `[]`.
    """
    both = comparable(student_logits, teacher_logits)
    student, teacher = (F.logsigmoid(torch.stack([logits, -logits], dim=-1) / temperature) for logits in both)
    whole = divergence(student, teacher, **parameters)
    return temperature**temperature_power * whole / student_logits.shape[1]


def of_top_k(
    divergence: OfLogProbs,
    temperature_power: int,
    student_logits: torch.Tensor,
    teacher_logits: TopK,
    temperature: float,
    **parameters: float,
) -> torch.Tensor:
    """The divergence to a stored teacher that keeps only the k most likely tokens.

    It is taken over k + 1 events, the k tokens and all other tokens together. It equals the divergence over all tokens
    if student and teacher distribute the remaining probability alike, and is smaller otherwise. If k is the size of the
    vocabulary, it is the divergence over all tokens.

    Reference: Anshumann et al., 2025, Sparse Logit Sampling, https://arxiv.org/abs/2503.16870, on the information that
    top k loses

    Args:
        divergence: a function from `log_probabilities.py`.
        temperature_power: as in `over_distributions`.
        student_logits: `[scored, classes]`.
        teacher_logits: a `TopK` with the same number of positions, stored at `temperature`.
        temperature: divides the student's logits.
        **parameters: of the divergence.

    Returns:
        The sum over the scored positions, computed in fp32, a tensor of shape `[]`.
    """
    student_log_probs = F.log_softmax(at_least_fp32(student_logits) / temperature, dim=-1)
    student = chosen_and_rest(student_log_probs, teacher_logits.ids)
    teacher = torch.cat([teacher_logits.log_probs, teacher_logits.log_tail.unsqueeze(1)], dim=1)
    return temperature**temperature_power * divergence(student, teacher, **parameters)


def softmax_log_probs(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probabilities of student and teacher at a temperature, `[scored, classes]` each."""
    student_logits, teacher_logits = comparable(student_logits, teacher_logits)
    return F.log_softmax(student_logits / temperature, dim=-1), F.log_softmax(teacher_logits / temperature, dim=-1)


def chosen_and_rest(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-probabilities `[scored, k + 1]` of the classes `ids`, `[scored, k]`, and of all others together."""
    return torch.cat([log_probs.gather(1, ids), log_tail(log_probs, ids)], dim=1)


def comparable(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the classes that both have, in fp32.

    Columns that only the student has, from a vocabulary that is padded further, are left out.
    """
    return at_least_fp32(student_logits[:, : teacher_logits.shape[1]]), at_least_fp32(teacher_logits)
