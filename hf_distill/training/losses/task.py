"""The task loss on hard labels, as in training without a teacher: one function per kind of label."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.precision import at_least_fp32


def cross_entropy(student_logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """The cross-entropy between the student's outputs and hard labels, at temperature 1.

    Positions with label -100 are ignored, so a batch may mix labelled and unlabelled ones. The softmax is computed in
    fp32.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (`L_mlm` in the paper); label smoothing
    as in Szegedy et al., 2016, https://arxiv.org/abs/1512.00567

    Args:
        student_logits: `[scored, classes]`.
        labels: `[scored]`, class indices, or -100.
        label_smoothing: how much of each label is spread over all classes, from 0 to 1.

    Returns:
        The sum over the labelled positions, an fp32 tensor of shape `[]`.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100]))
        tensor(1.3863)
    """
    return F.cross_entropy(
        at_least_fp32(student_logits),
        labels,
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def binary_cross_entropy(
    student_logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The binary cross-entropy for multi-label classification.

    Labels of -100 are ignored. Computed in fp32 from the logits.

    Reference: Nam et al., 2014, Large-scale Multi-label Text Classification, https://arxiv.org/abs/1312.5419

    Args:
        student_logits: `[scored, classes]`.
        labels: `[scored, classes]` of 0, 1 or -100.
        label_smoothing: ignored.

    Returns:
        The sum over the known labels, an fp32 tensor of shape `[]`.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -100.0]]))
        tensor(1.3863)
    """
    logits = at_least_fp32(student_logits)
    losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return losses.masked_fill(labels == IGNORE_INDEX, 0.0).sum()


def squared_error(student_logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """The squared error between the student's outputs and the labels, for regression.

    Labels that are NaN are ignored. Computed in fp32.

    Reference: `torch.nn.MSELoss`, which transformers uses for `problem_type="regression"`

    Args:
        student_logits: `[scored, outputs]`.
        labels: `[scored, outputs]`, NaN where unknown.
        label_smoothing: ignored.

    Returns:
        The sum over the known labels, an fp32 tensor of shape `[]`.

    Example:
        >>> squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [float("nan")]]))
        tensor(4.)
    """
    return (at_least_fp32(student_logits) - at_least_fp32(labels)).masked_fill(labels.isnan(), 0.0).square().sum()


TASK_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "categorical": cross_entropy,
    "binary": binary_cross_entropy,
    "real": squared_error,
}
"""Task losses by what the logits describe (`Head.distribution`)."""


class TaskLoss(Loss):
    """The task loss on hard labels: `alpha_task`.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (`L_mlm` in the paper)

    Args:
        of_labels: a function from `TASK_LOSSES`.
        label_smoothing: how much of each label is spread over all classes.

    Example:
        >>> TaskLoss(cross_entropy)(Signals(logits=torch.zeros(1, 4)), None, ScoredItems(labels=torch.tensor([3])))
        tensor(1.3863)
    """

    needs = Needs(logits=True, labels=True)
    reads_teacher = False
    description = "the task loss on the labels"

    def __init__(self, of_labels: Callable[..., torch.Tensor], label_smoothing: float = 0.0):
        super().__init__()
        self.of_labels, self.label_smoothing = of_labels, label_smoothing

    @classmethod
    def from_setup(cls, setup: Setup) -> "TaskLoss":
        return cls(TASK_LOSSES[setup.head.distribution], setup.args.label_smoothing_factor)

    def state(self) -> dict[str, object]:
        return {"label_smoothing": self.label_smoothing}

    def forward(self, student: Signals, teacher: Signals | None, scored: ScoredItems) -> torch.Tensor:
        return self.of_labels(student.logits, scored.labels, self.label_smoothing)
