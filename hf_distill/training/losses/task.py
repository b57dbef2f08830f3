"""What the student would be trained on without a teacher."""

import torch
import torch.nn.functional as F

from hf_distill.training.scoring import IGNORE_INDEX, Scored


class TaskLoss:
    """The cross-entropy of the student with the hard labels, at temperature 1.

    Summed over the rows that have a label: rows labelled -100 take no part, so a batch may mix labelled and unlabelled
    rows. Softmax is taken in fp32 from the logits.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (there `L_mlm`); label smoothing as in
    Szegedy et al., 2016, https://arxiv.org/abs/1512.00567

    Shapes:
        student_logits: `[rows, classes]`
        teacher_logits: not read
        labels: `[rows]`, class indices or -100
        returns: a scalar in fp32, the sum over labelled rows; the trainer divides by the labelled rows in the whole
            optimizer step

    Example:
        >>> TaskLoss()(torch.zeros(2, 4), None, torch.tensor([3, -100]))
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
