"""How far the student's hidden states point away from the teacher's."""

import torch
import torch.nn.functional as F

from hf_distill.training.scoring import Scored


class CosineLoss:
    """One minus the cosine between the last hidden states of student and teacher.

    Summed over the attended positions, in fp32. Padding is left out, whatever its hidden states hold.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (there `L_cos`)

    Shapes:
        student_hidden, teacher_hidden: `[batch, length, width]`, of one width
        attended: `[batch, length]`, True where there is no padding
        returns: a scalar in fp32, the sum over attended positions; the trainer divides by the attended positions in the
            whole optimizer step

    Example:
        >>> hidden = torch.randn(2, 7, 16)
        >>> CosineLoss()(hidden, -hidden, torch.ones(2, 7, dtype=torch.bool))
        tensor(28.)
    """

    reads = "hidden_states"

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.attended.sum()

    def __call__(
        self, student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        # Filling padding with one constant on both sides makes its cosine 1 and its gradient 0, and unlike indexing
        # with the mask does not wait for the device to count it.
        padding = ~attended.unsqueeze(-1)
        student_hidden = student_hidden.float().masked_fill(padding, 1.0)
        teacher_hidden = teacher_hidden.float().masked_fill(padding, 1.0)
        distance = 1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)
        return distance.masked_fill(~attended, 0.0).sum()
