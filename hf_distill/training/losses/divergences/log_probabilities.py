"""Divergences between two distributions, from their log-probabilities: one function each, in nats.

They serve every distribution in `distributions.py`. Mixtures are computed in log space, so that improbable events keep
their gradients. An event that is impossible on both sides, with the log-probability -1e30, counts as 0.
"""

import math

import torch
import torch.nn.functional as F


def forward_kl(student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor) -> torch.Tensor:
    """The KL divergence from the teacher's distribution to the student's.

    `KL(p || q) = sum p (log p - log q)` of the teacher's `p` and the student's `q`. The student covers all that the
    teacher finds likely.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Args:
        student_log_probs: `[..., events]`.
        teacher_log_probs: `[..., events]`.

    Returns:
        The sum over all distributions, in nats, a tensor of shape `[]`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> forward_kl(student, teacher)
        tensor(0.3681)
    """
    return F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)


def reverse_kl(student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor) -> torch.Tensor:
    """The KL divergence from the student's distribution to the teacher's.

    `KL(q || p) = sum q (log q - log p)` of the student's `q` and the teacher's `p`. The student avoids all that the
    teacher finds unlikely, and may leave out some of what it finds likely. MiniLLM samples texts from the student; here
    the divergence is exact at each position of the given text.

    Reference: Gu et al., 2023, MiniLLM, https://arxiv.org/abs/2306.08543

    Args:
        student_log_probs: `[..., events]`.
        teacher_log_probs: `[..., events]`.

    Returns:
        The sum over all distributions, in nats, a tensor of shape `[]`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> reverse_kl(student, teacher)
        tensor(0.5108)
    """
    return F.kl_div(teacher_log_probs, student_log_probs, reduction="sum", log_target=True)


def jsd(student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, divergence_beta: float = 0.5) -> torch.Tensor:
    """The generalised Jensen-Shannon divergence.

    `beta KL(p || m) + (1 - beta) KL(q || m)` of the teacher's `p`, the student's `q` and the mixture
    `m = beta p + (1 - beta) q`. A small beta behaves like `beta` times forward KL, a beta near 1 like
    `1 - beta` times reverse KL.

    Beta is that of the paper and of TRL, where exactly 0 and 1 stand for forward and reverse KL without that factor.
    DistiLLM's code has `1 - beta` in its place.

    Reference: Agarwal et al., 2023, GKD, https://arxiv.org/abs/2306.13649 (equation 1)

    Args:
        student_log_probs: `[..., events]`.
        teacher_log_probs: `[..., events]`.
        divergence_beta: weight of the teacher in the mixture, between 0 and 1.

    Returns:
        The sum over all distributions, in nats, a tensor of shape `[]`. Each is at most log 2.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> jsd(student, teacher, divergence_beta=0.5)
        tensor(0.1017)
    """
    mixture = _log_mixture(teacher_log_probs, student_log_probs, divergence_beta)
    from_teacher = F.kl_div(mixture, teacher_log_probs, reduction="sum", log_target=True)
    from_student = F.kl_div(mixture, student_log_probs, reduction="sum", log_target=True)
    return divergence_beta * from_teacher + (1 - divergence_beta) * from_student


def skew_kl(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, divergence_skew: float = 0.1
) -> torch.Tensor:
    """The skew KL divergence: forward KL to a student that is mixed with some of the teacher.

    `KL(p || skew p + (1 - skew) q)` of the teacher's `p` and the student's `q`. It is at most `-log skew`, so a token
    that the student finds nearly impossible cannot dominate the gradient.

    Reference: Ko et al., 2024, DistiLLM, https://arxiv.org/abs/2402.03898 (alpha in the paper)

    Args:
        student_log_probs: `[..., events]`.
        teacher_log_probs: `[..., events]`.
        divergence_skew: share of the teacher in the mixture, between 0 and 1.

    Returns:
        The sum over all distributions, in nats, a tensor of shape `[]`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> skew_kl(student, teacher, divergence_skew=0.1)
        tensor(0.3071)
    """
    mixture = _log_mixture(teacher_log_probs, student_log_probs, divergence_skew)
    return F.kl_div(mixture, teacher_log_probs, reduction="sum", log_target=True)


def skew_reverse_kl(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, divergence_skew: float = 0.1
) -> torch.Tensor:
    """The skew reverse KL divergence: reverse KL to a teacher that is mixed with some of the student.

    `KL(q || skew q + (1 - skew) p)` of the student's `q` and the teacher's `p`. It is at most `-log skew`.

    Reference: Ko et al., 2024, DistiLLM, https://arxiv.org/abs/2402.03898 (alpha in the paper)

    Args:
        student_log_probs: `[..., events]`.
        teacher_log_probs: `[..., events]`.
        divergence_skew: share of the student in the mixture, between 0 and 1.

    Returns:
        The sum over all distributions, in nats, a tensor of shape `[]`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> skew_reverse_kl(student, teacher, divergence_skew=0.1)
        tensor(0.3653)
    """
    mixture = _log_mixture(student_log_probs, teacher_log_probs, divergence_skew)
    return F.kl_div(mixture, student_log_probs, reduction="sum", log_target=True)


def tvd(student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor) -> torch.Tensor:
    """The total variation distance.

    `1/2 sum |p - q|` of the teacher's `p` and the student's `q`: the largest difference between the probabilities that
    the two give to one set of events. The gradient where both are equal is 0.

    Reference: Wen et al., 2023, f-Divergence Minimization for Sequence-Level Knowledge Distillation,
    https://arxiv.org/abs/2307.15190

    Args:
        student_log_probs: `[..., events]`.
        teacher_log_probs: `[..., events]`.

    Returns:
        The sum over all distributions, each from 0 to 1 without a unit, a tensor of shape `[]`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
        >>> tvd(student, teacher)
        tensor(0.4000)
    """
    return 0.5 * (student_log_probs.exp() - teacher_log_probs.exp()).abs().sum()


def _log_mixture(log_probs: torch.Tensor, other_log_probs: torch.Tensor, share: float) -> torch.Tensor:
    """The logarithm of `share * exp(log_probs) + (1 - share) * exp(other_log_probs)`."""
    return torch.logaddexp(log_probs + math.log(share), other_log_probs + math.log1p(-share))
