"""The cosine loss between the last hidden states of student and teacher."""

import torch
import torch.nn.functional as F
from torch import nn

from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.citations import SANH_2019
from hf_distill.training.scoring.alignment import HeadSpec


class Projection(nn.Linear):
    """A linear map from `[batch, length, student width]` to `[batch, length, teacher width]`, without a bias.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351 (`W_h` in the paper)

    Args:
        student_width: width of the student's hidden states.
        teacher_width: width of the teacher's hidden states.
        seed: random seed of the initial weights.

    Example:
        >>> Projection(16, 32, seed=0)(torch.randn(2, 7, 16)).shape
        torch.Size([2, 7, 32])
    """

    def __init__(self, student_width: int, teacher_width: int, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(student_width, teacher_width, bias=False)


class CosineLoss(Loss):
    """One minus the cosine between the last hidden states of student and teacher: `alpha_cos`.

    `forward` reads hidden states `[batch, length, width]` and `state_weights` `[batch, length]`, and returns the
    weighted sum in fp32. Padding has no effect, even if its hidden states are not finite.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (`L_cos` in the paper)

    Args:
        projection: a trained map from the student's width to the teacher's; None if the widths are equal.

    Raises:
        ValueError: in `forward`, if the states of student and teacher differ in width or number.

    Example:
        >>> hidden = torch.randn(2, 7, 16)
        >>> student, teacher = Signals(last_hidden_state=hidden), Signals(last_hidden_state=-hidden)
        >>> CosineLoss()(student, teacher, ScoredItems(state_weights=torch.ones(2, 7)))
        tensor(28.)
    """

    needs = Needs(last_hidden_state=True)
    description = "one minus the cosine between the last hidden states of student and teacher"
    citation = SANH_2019
    options = ("project_hidden_states",)

    def __init__(self, projection: Projection | None = None):
        super().__init__()
        self.projection = projection

    @classmethod
    def from_setup(cls, setup: Setup) -> "CosineLoss":
        if not setup.args.project_hidden_states:
            return cls()
        student_width, teacher_width = setup.student.hidden_width, setup.teacher.hidden_width
        if student_width is None or teacher_width is None:
            raise ValueError(
                "project_hidden_states=True needs hidden_size or hidden_sizes in the configs of student and teacher."
            )
        return cls(Projection(student_width, teacher_width, seed=setup.args.seed))

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        widths = [student.hidden_width, teacher.hidden_width]
        if self.projection is None and None not in widths and widths[0] != widths[1]:
            raise ValueError(
                f"The cosine loss needs hidden states of equal width, but the student's are {widths[0]} wide and the "
                f"teacher's {widths[1]}: set project_hidden_states=True, set alpha_cos=0, or cut the student with "
                f"make_student(teacher)."
            )

    def state(self) -> dict[str, object]:
        return {"project_hidden_states": self.projection is not None}

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        student_hidden, teacher_hidden = student.last_hidden_state, teacher.last_hidden_state
        if self.projection is not None:
            student_hidden = self.projection(student_hidden.to(self.projection.weight.dtype))
        if student_hidden.shape != teacher_hidden.shape:
            raise ValueError(
                f"The cosine loss needs hidden states of equal shape, but the student's are "
                f"{list(student_hidden.shape)} and the teacher's {list(teacher_hidden.shape)}: set alpha_cos=0."
            )
        # Filling padding with the same constant on both sides makes its cosine 1 and its gradient 0. Unlike indexing
        # with the mask, it does not wait for the device.
        padding = scored.state_weights.eq(0)
        student_hidden = student_hidden.float().masked_fill(padding.unsqueeze(-1), 1.0)
        teacher_hidden = teacher_hidden.float().masked_fill(padding.unsqueeze(-1), 1.0)
        distance = 1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)
        return (scored.state_weights * distance).masked_fill(padding, 0.0).sum()
