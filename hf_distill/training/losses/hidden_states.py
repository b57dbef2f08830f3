"""How far the student's hidden states point away from the teacher's."""

import torch
import torch.nn.functional as F

from hf_distill.training.scoring.heads import Scored


class CosineLoss:
    """One minus the cosine between the last hidden states of student and teacher.

    Summed over the attended positions, in fp32. Padding is left out, whatever its hidden states hold.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (there `L_cos`)

    Shapes:
        student_hidden, teacher_hidden: `[batch, length, width]`, of one width
        weights: `[batch, length]`, how much of an item each position is: 1, or 0 for padding; in images and audio,
            where an example is one item, its share of that
        returns: a scalar in fp32, the weighted sum; the trainer divides by the items in the whole optimizer step

    Raises:
        ValueError: if the states are of different width or number.

    Example:
        >>> hidden = torch.randn(2, 7, 16)
        >>> CosineLoss()(hidden, -hidden, torch.ones(2, 7))
        tensor(28.)
    """

    reads = "hidden_states"

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.attended.sum()

    def __call__(
        self, student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        if student_hidden.shape != teacher_hidden.shape:
            raise ValueError(
                f"The cosine loss compares states one by one: the student's are {list(student_hidden.shape)} and the "
                f"teacher's {list(teacher_hidden.shape)}: set alpha_cos=0."
            )
        # Filling padding with one constant on both sides makes its cosine 1 and its gradient 0, and unlike indexing
        # with the mask does not wait for the device to count it.
        padding = weights.eq(0)
        student_hidden = student_hidden.float().masked_fill(padding.unsqueeze(-1), 1.0)
        teacher_hidden = teacher_hidden.float().masked_fill(padding.unsqueeze(-1), 1.0)
        distance = 1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)
        return (weights * distance).masked_fill(padding, 0.0).sum()
