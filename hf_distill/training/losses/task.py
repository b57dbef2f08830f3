"""What the student would be trained on without a teacher."""

import torch
import torch.nn.functional as F

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.scoring.heads import Scored


class CrossEntropyLoss:
    """The cross-entropy of the student with the hard labels, at temperature 1.

    Summed over the positions that have a label: those labelled -100 take no part, so a batch may mix labelled and
    unlabelled positions. Softmax is taken in fp32 from the logits.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (there `L_mlm`); label smoothing as in
    Szegedy et al., 2016, https://arxiv.org/abs/1512.00567

    Shapes:
        student_logits: `[scored, classes]`
        teacher_logits: not read
        labels: `[scored]`, class indices or -100
        returns: a scalar in fp32, the sum over labelled positions; the trainer divides by those in the whole
            optimizer step

    Example:
        >>> CrossEntropyLoss()(torch.zeros(2, 4), None, torch.tensor([3, -100]))
        tensor(1.3863)
    """

    reads = "logits"

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.labelled.sum()

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        return F.cross_entropy(
            student_logits.float(),
            labels,
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )


class BinaryCrossEntropyLoss:
    """The cross-entropy of the student with a hard yes or no for each class: for multi-label classification.

    Summed over the labels that are known: those of -100 take no part. In fp32, from the logits.

    Reference: Nam et al., 2014, Large-scale Multi-label Text Classification, https://arxiv.org/abs/1312.5419

    Shapes:
        student_logits: `[scored, classes]`
        teacher_logits: not read
        labels: `[scored, classes]`, 0, 1 or -100
        returns: a scalar in fp32, the sum over known labels; the trainer divides by the known labels in the whole
            optimizer step

    Example:
        >>> BinaryCrossEntropyLoss()(torch.zeros(1, 3), None, torch.tensor([[1.0, 0.0, -100.0]]))
        tensor(1.3863)
    """

    reads = "logits"

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.labelled.sum()

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        losses = F.binary_cross_entropy_with_logits(student_logits.float(), labels.float(), reduction="none")
        return losses.masked_fill(labels == IGNORE_INDEX, 0.0).sum()


class MeanSquaredErrorLoss:
    """The squared difference between the student's numbers and the right ones: for regression.

    Summed over the numbers that are known: those that are NaN take no part. In fp32.

    Reference: that of `problem_type="regression"` in transformers, `torch.nn.MSELoss`

    Shapes:
        student_logits: `[scored, numbers]`
        teacher_logits: not read
        labels: `[scored, numbers]`, NaN where unknown
        returns: a scalar in fp32, the sum over known numbers; the trainer divides by the known numbers in the whole
            optimizer step

    Example:
        >>> MeanSquaredErrorLoss()(torch.tensor([[1.0], [2.0]]), None, torch.tensor([[3.0], [float("nan")]]))
        tensor(4.)
    """

    reads = "logits"

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.labelled.sum()

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        return (student_logits.float() - labels.float()).masked_fill(labels.isnan(), 0.0).square().sum()
