"""How far the student's output distribution is from the teacher's."""

import torch
import torch.nn.functional as F

from hf_distill.training.scoring import Scored


class KLDivergenceLoss:
    """The KL divergence from the teacher's softened distribution to the student's, times temperature squared.

    `T^2 * KL(softmax(teacher_logits / T) || softmax(student_logits / T))`, summed over the scored rows. The factor
    keeps the gradient's size independent of the temperature. Softmax is taken in fp32 from the logits of both sides.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Shapes:
        student_logits, teacher_logits: `[rows, classes]`
        labels: `[rows]`, not read
        returns: a scalar in fp32, the sum over rows; the trainer divides by the rows in the whole optimizer step

    Example:
        >>> loss = KLDivergenceLoss(temperature=2.0)
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), None)
        tensor(0.)
    """

    reads = "logits"

    def __init__(self, temperature: float):
        self.temperature = temperature

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.positions.sum()

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        student_log_probs = F.log_softmax(student_logits.float() / self.temperature, dim=-1)
        teacher_log_probs = F.log_softmax(teacher_logits.float() / self.temperature, dim=-1)
        divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)
        return self.temperature**2 * divergence
