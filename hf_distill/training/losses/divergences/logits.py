"""Divergences that are not defined by probabilities of events alone, from logits: one function each."""

import torch
import torch.nn.functional as F

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.losses.divergences.distributions import chosen_and_rest, comparable, softmax_log_probs
from hf_distill.training.losses.divergences.log_probabilities import forward_kl
from hf_distill.training.losses.precision import at_least_fp32
from hf_distill.training.scoring.scored import MASKED_LOGIT
from hf_distill.training.scoring.top_k import TopK


def bernoulli_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The KL divergence for multi-label classification, times temperature squared.

    `T^2 * mean over classes of KL(Bernoulli(sigmoid(teacher_logits / T)) || Bernoulli(sigmoid(student_logits / T)))`,
    summed over the scored positions in fp32, in nats.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, with two classes for each label

    Args:
        student_logits: `[scored, classes]`.
        teacher_logits: `[scored, classes]`.
        temperature: divides the logits of both sides.

    Returns:
        The sum over the scored positions, an fp32 tensor of shape `[]`.

    Example:
        >>> bernoulli_kl(torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[1.0, 0.0, 3.0]]), temperature=2.0)
        tensor(0.)
    """
    student, teacher = at_least_fp32(student_logits) / temperature, at_least_fp32(teacher_logits) / temperature
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (yes + no).mean(-1).sum()


def sampled_kl(student_logits: torch.Tensor, teacher_logits: TopK, temperature: float) -> torch.Tensor:
    """The forward KL divergence to tokens that were sampled from the teacher, times temperature squared.

    `T^2 sum s (log s - log q)` of the tokens' shares `s` of the draws and the student's `q`, softmax over the whole
    vocabulary. As a mean over the draws, its gradient is that of the KL divergence over all tokens. Its value is larger
    by an amount that does not depend on the student, because the shares have less entropy than the teacher's
    distribution.

    Reference: Anshumann et al., 2025, Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs,
    https://arxiv.org/abs/2503.16870

    Args:
        student_logits: `[scored, classes]`.
        teacher_logits: a `TopK` with the log-shares of the tokens, sampled at `temperature`; -1e30 in unused slots.
        temperature: divides the student's logits.

    Returns:
        The sum over the scored positions in nats, an fp32 tensor of shape `[]`.

    Example:
        >>> sampled = TopK(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0, 2]]), torch.tensor([-1e30]))
        >>> sampled_kl(torch.tensor([[1.0, 0.0, 1.0]]), sampled, temperature=2.0)
        tensor(1.0595)
    """
    log_probs = F.log_softmax(at_least_fp32(student_logits) / temperature, dim=-1)
    return temperature**2 * forward_kl(log_probs.gather(1, teacher_logits.ids), teacher_logits.log_probs)


def squared_difference(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The squared difference between the student's and the teacher's outputs, for regression.

    The mean over the outputs of an example, summed over the examples in fp32. The temperature has no effect: dividing
    both sides by T and multiplying the square by T^2 cancels out.

    Reference: Ba and Caruana, 2014, Do Deep Nets Really Need to be Deep?, https://arxiv.org/abs/1312.6184

    Args:
        student_logits: `[scored, outputs]`.
        teacher_logits: `[scored, outputs]`.
        temperature: ignored.

    Returns:
        The sum over the examples, an fp32 tensor of shape `[]`.

    Example:
        >>> squared_difference(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), temperature=2.0)
        tensor(2.)
    """
    return (at_least_fp32(student_logits) - at_least_fp32(teacher_logits)).square().mean(-1).sum()


def mse(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The squared difference between the logits, the mean over the classes.

    `1/K sum (z_student - z_teacher)^2` over K classes, in squared logits. The temperature has no effect: dividing both
    sides by T and multiplying the square by T^2 cancels out. Unlike divergences between probabilities, it also counts a
    constant that is added to all logits of a position. Classes that are masked with -1e30 are left out of the mean.

    Reference: Kim et al., 2021, Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation, https://arxiv.org/abs/2105.08919

    Args:
        student_logits: `[scored, classes]`. Further columns, from a vocabulary that is padded further, are ignored.
        teacher_logits: `[scored, classes]`.
        temperature: ignored.

    Returns:
        The sum over the scored positions, an fp32 tensor of shape `[]`.

    Example:
        >>> mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), temperature=2.0)
        tensor(2.)
    """
    student_logits, teacher_logits = comparable(student_logits, teacher_logits)
    masked = is_masked(teacher_logits)
    squares = (student_logits - teacher_logits).masked_fill(masked, 0.0).square()
    return (squares.sum(-1) / num_classes(masked).squeeze(-1)).sum()


def dkd(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    labels: torch.Tensor,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 8.0,
) -> torch.Tensor:
    """Decoupled knowledge distillation: the KL divergence in two parts with their own weights.

    `T^2 * (alpha * KL(b_teacher || b_student) + beta * KL(r_teacher || r_student))` in nats: `b` is the distribution
    over two events, the labelled class and all others together (TCKD), and `r` is the distribution over the other
    classes alone (NCKD). Forward KL is the same with alpha = 1 and beta = the teacher's probability of the other
    classes, which is small where the teacher is confident.

    Reference: Zhao et al., 2022, Decoupled Knowledge Distillation, https://arxiv.org/abs/2203.08679. As in the paper,
    the labelled class is the ground truth. The authors set alpha = 1, and beta by teacher and dataset; 8 is their usual
    value for CIFAR-100.

    Args:
        student_logits: `[scored, classes]`. Further columns, from a vocabulary that is padded further, are ignored.
        teacher_logits: `[scored, classes]`.
        temperature: divides the logits of both sides.
        labels: `[scored]`, class indices, or -100. Positions without a label count as 0.
        dkd_alpha: weight of the first part.
        dkd_beta: weight of the second part.

    Returns:
        The sum over the labelled positions, an fp32 tensor of shape `[]`.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> dkd(logits, logits, temperature=2.0, labels=torch.tensor([0]))
        tensor(0.)
    """
    labelled = labels.ne(IGNORE_INDEX)
    target = labels.where(labelled, 0).unsqueeze(1)
    student, teacher = softmax_log_probs(student_logits, teacher_logits, temperature)
    of_target = F.kl_div(
        chosen_and_rest(student, target), chosen_and_rest(teacher, target), reduction="none", log_target=True
    )
    student, teacher = (F.log_softmax(values.scatter(1, target, MASKED_LOGIT), dim=-1) for values in (student, teacher))
    of_others = F.kl_div(student, teacher, reduction="none", log_target=True)
    both = dkd_alpha * of_target.sum(-1) + dkd_beta * of_others.sum(-1)
    return temperature**2 * both.masked_fill(~labelled, 0.0).sum()


def dist(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """One minus Pearson's correlation between the probabilities of student and teacher: DIST, the inter-class part.

    `1 - corr(softmax(z_student / T), softmax(z_teacher / T))` over the classes of a position, from 0 to 2 without a
    unit. A correlation does not depend on the size of differences, so its gradient does not shrink with the temperature
    and there is no factor `T^2`; the authors' code has one. A position where one side gives all classes the same
    probability counts as 1. Classes that are masked with -1e30 are left out.

    The intra-class part of DIST is left out: it correlates the examples of a batch, so it would depend on how a step is
    split into micro-batches and processes.

    Reference: Huang et al., 2022, Knowledge Distillation from A Stronger Teacher, https://arxiv.org/abs/2205.10536

    Args:
        student_logits: `[scored, classes]`. Further columns, from a vocabulary that is padded further, are ignored.
        teacher_logits: `[scored, classes]`. With two classes the correlation is always 1 or -1, so use three or more.
        temperature: divides the logits of both sides.

    Returns:
        The sum over the scored positions, an fp32 tensor of shape `[]`.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> dist(student, teacher, temperature=1.0)
        tensor(1.8671)
    """
    student_logits, teacher_logits = comparable(student_logits, teacher_logits)
    masked = is_masked(teacher_logits)
    student, teacher = (_normalized_probs(logits / temperature, masked) for logits in (student_logits, teacher_logits))
    return (1 - (student * teacher).sum(-1)).sum()


def _normalized_probs(logits: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Probabilities minus their mean, divided by their norm; 0 where they differ by no more than rounding errors."""
    mean = num_classes(masked).to(logits.dtype).reciprocal()
    centered = (F.softmax(logits, dim=-1) - mean).masked_fill(masked, 0.0)
    norm = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)
    is_constant = norm <= 16 * torch.finfo(norm.dtype).eps * mean.sqrt()
    return (centered / norm.masked_fill(is_constant, 1.0)).masked_fill(is_constant, 0.0)


def is_masked(logits: torch.Tensor) -> torch.Tensor:
    """Where a class is impossible: its logit is -1e30, as for padding in question answering."""
    return logits <= MASKED_LOGIT / 2


def num_classes(masked: torch.Tensor) -> torch.Tensor:
    """The number of possible classes of each position, `[scored, 1]`, at least 1."""
    return (~masked).sum(-1, keepdim=True).clamp(min=1)
