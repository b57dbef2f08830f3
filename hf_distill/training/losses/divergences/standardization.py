"""Logits standardised per position, so that the student need not match the scale of the teacher's logits."""

import torch

from hf_distill.training.losses.divergences.distributions import comparable
from hf_distill.training.losses.divergences.logits import is_masked, num_classes
from hf_distill.training.scoring.scored import MASKED_LOGIT

VARIANCE_FLOOR = 1e-14
"""Added to the variance, so that equal logits have a finite gradient. It is the square of the paper's 1e-7."""


def standardized(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardises the logits of each position: subtracts their mean and divides by their standard deviation.

    `(z - mean(z)) / std(z)` over the classes, on both sides, before the temperature divides them. The student then
    learns the order and the relative distances of the teacher's logits, not their size. The standard deviation has the
    divisor K, the number of classes, as in the paper; the authors' code has K - 1. Classes that are masked with -1e30
    count neither in the mean nor in the standard deviation, and stay masked.

    Reference: Sun et al., 2024, Logit Standardization in Knowledge Distillation, https://arxiv.org/abs/2403.01427

    Args:
        student_logits: `[scored, classes]`. Further columns, from a vocabulary that is padded further, are ignored.
        teacher_logits: `[scored, classes]`.

    Returns:
        The standardised logits of student and teacher, `[scored, classes]` in fp32.

    Example:
        >>> standardized(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]]))
        (tensor([[-1.2247,  0.0000,  1.2247]]), tensor([[-1.2247,  0.0000,  1.2247]]))
    """
    student_logits, teacher_logits = comparable(student_logits, teacher_logits)
    masked = is_masked(teacher_logits)
    return _standardized(student_logits, masked), _standardized(teacher_logits, masked)


def _standardized(logits: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    count = num_classes(masked)
    mean = logits.masked_fill(masked, 0.0).sum(-1, keepdim=True) / count
    centered = (logits - mean).masked_fill(masked, 0.0)
    variance = centered.square().sum(-1, keepdim=True) / count
    return (centered * torch.rsqrt(variance + VARIANCE_FLOOR)).masked_fill(masked, MASKED_LOGIT)
