"""How far what the student's logits say is from what the teacher's say."""

import torch
import torch.nn.functional as F

from hf_distill.training.scoring.heads import MASKED_LOGIT, Scored
from hf_distill.training.scoring.top_k import TopK


class KLDivergenceLoss:
    """The KL divergence from the teacher's softened distribution to the student's, times temperature squared.

    `T^2 * KL(softmax(teacher_logits / T) || softmax(student_logits / T))`, summed over the scored positions. The factor
    keeps the gradient's size independent of the temperature. Softmax is taken in fp32 from the logits of both sides.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Shapes:
        student_logits: `[scored, classes]`, or more where the student's vocabulary is padded further; these are
            left out
        teacher_logits: `[scored, classes]`
        labels: `[scored]`, not read
        returns: a scalar in fp32, the sum over scored positions; the trainer divides by those in the whole optimizer
            step

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
        student_logits = student_logits[:, : teacher_logits.shape[1]]
        student_log_probs = F.log_softmax(student_logits.float() / self.temperature, dim=-1)
        teacher_log_probs = F.log_softmax(teacher_logits.float() / self.temperature, dim=-1)
        divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)
        return self.temperature**2 * divergence


class TopKKLDivergenceLoss(KLDivergenceLoss):
    """The KL divergence where of the teacher's distribution only the likeliest tokens are known.

    `T^2 * KL(p || q)` over k + 1 events, the k tokens and all others together, summed over the scored positions, in
    fp32. It is the whole divergence where the teacher spreads that rest as the student does, and less where it does
    not; with k the size of the vocabulary nothing is left out.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, over fewer events; Anshumann et al., 2025, Sparse
    Logit Sampling, https://arxiv.org/abs/2503.16870, on what is lost

    Shapes:
        student_logits: `[scored, classes]`
        teacher_logits: a `TopK` of as many positions
        labels: `[scored]`, not read
        returns: a scalar in fp32, the sum over scored positions; the trainer divides by those in the whole optimizer
            step

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> log_probs = (logits / 2).log_softmax(-1)
        >>> top = TopK(log_probs[:, :2], torch.tensor([[0, 1]]), log_probs[:, 2])
        >>> TopKKLDivergenceLoss(temperature=2.0)(logits, top, None)
        tensor(0.)
    """

    def __call__(self, student_logits: torch.Tensor, teacher_logits: TopK, labels: torch.Tensor | None) -> torch.Tensor:
        student_log_probs = F.log_softmax(student_logits.float() / self.temperature, dim=-1)
        of_top = student_log_probs.gather(1, teacher_logits.ids)
        of_tail = student_log_probs.scatter(1, teacher_logits.ids, MASKED_LOGIT).logsumexp(1, keepdim=True)
        student = torch.cat([of_top, of_tail.clamp(min=MASKED_LOGIT)], dim=1)
        teacher = torch.cat([teacher_logits.log_probs, teacher_logits.log_tail.unsqueeze(1)], dim=1)
        return self.temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


class BernoulliKLDivergenceLoss:
    """The KL divergence for a yes or no per class, times temperature squared: for multi-label classification.

    `T^2 * mean over classes of KL(Bernoulli(sigmoid(teacher_logits / T)) || Bernoulli(sigmoid(student_logits / T)))`,
    summed over the scored positions, in fp32.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, with two classes for each label

    Shapes:
        student_logits, teacher_logits: `[scored, classes]`
        labels: `[scored, classes]`, not read
        returns: a scalar in fp32, the sum over scored positions; the trainer divides by those in the whole optimizer
            step

    Example:
        >>> loss = BernoulliKLDivergenceLoss(temperature=2.0)
        >>> loss(torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[1.0, 0.0, 3.0]]), None)
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
        student, teacher = student_logits.float() / self.temperature, teacher_logits.float() / self.temperature
        yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return self.temperature**2 * (yes + no).mean(-1).sum()


class SquaredErrorLoss:
    """The squared difference between the student's numbers and the teacher's: for regression.

    The mean over the numbers of a position, summed over the scored positions, in fp32. There is no temperature:
    divided by it and multiplied by its square, the difference is what it was.

    Reference: Ba and Caruana, 2014, Do Deep Nets Really Need to be Deep?, https://arxiv.org/abs/1312.6184

    Shapes:
        student_logits, teacher_logits: `[scored, numbers]`
        labels: `[scored, numbers]`, not read
        returns: a scalar in fp32, the sum over scored positions; the trainer divides by those in the whole optimizer
            step

    Example:
        >>> SquaredErrorLoss()(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), None)
        tensor(2.)
    """

    reads = "logits"

    def items(self, scored: Scored) -> torch.Tensor:
        return scored.positions.sum()

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        return (student_logits.float() - teacher_logits.float()).square().mean(-1).sum()
