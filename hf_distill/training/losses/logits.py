"""Divergences between the student's and the teacher's logits, one function each, and the loss that uses them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.citations import HINTON_2015
from hf_distill.training.losses.precision import at_least_fp32
from hf_distill.training.scoring.top_k import TopK, log_tail


def kl_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The KL divergence from the teacher's softened distribution to the student's, times temperature squared.

    `T^2 * KL(softmax(teacher_logits / T) || softmax(student_logits / T))`, summed over the scored positions. The factor
    `T^2` keeps the size of the gradient independent of the temperature. Both softmaxes are computed in fp32.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Args:
        student_logits: `[scored, classes]`. Further columns, from a vocabulary that is padded further, are ignored.
        teacher_logits: `[scored, classes]`.
        temperature: divides the logits of both sides.

    Returns:
        The sum over the scored positions, an fp32 tensor of shape `[]`.

    Example:
        >>> kl_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), temperature=2.0)
        tensor(0.)
    """
    student_logits = student_logits[:, : teacher_logits.shape[1]]
    student_log_probs = F.log_softmax(at_least_fp32(student_logits) / temperature, dim=-1)
    teacher_log_probs = F.log_softmax(at_least_fp32(teacher_logits) / temperature, dim=-1)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)
    return temperature**2 * divergence


def top_k_kl_divergence(student_logits: torch.Tensor, teacher_logits: TopK, temperature: float) -> torch.Tensor:
    """The KL divergence to a stored teacher that keeps only the k most likely tokens.

    `T^2 * KL(p || q)` over k + 1 events, the k tokens and all other tokens together, summed over the scored positions
    in fp32. It equals the full divergence if student and teacher distribute the remaining probability alike, and is
    smaller otherwise. If k is the size of the vocabulary, it is the full divergence.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, over fewer events; Anshumann et al., 2025, Sparse
    Logit Sampling, https://arxiv.org/abs/2503.16870, on the information that top k loses

    Args:
        student_logits: `[scored, classes]`.
        teacher_logits: a `TopK` with the same number of positions.
        temperature: divides the logits of both sides. The `TopK` must be stored at this temperature.

    Returns:
        The sum over the scored positions, an fp32 tensor of shape `[]`.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> log_probs = (logits / 2).log_softmax(-1)
        >>> top = TopK(log_probs[:, :2], torch.tensor([[0, 1]]), log_probs[:, 2])
        >>> top_k_kl_divergence(logits, top, temperature=2.0)
        tensor(0.)
    """
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=-1)
    of_top = student_log_probs.gather(1, teacher_logits.ids)
    student = torch.cat([of_top, log_tail(student_log_probs, teacher_logits.ids)], dim=1)
    teacher = torch.cat([teacher_logits.log_probs, teacher_logits.log_tail.unsqueeze(1)], dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def bernoulli_kl_divergence(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The KL divergence for multi-label classification, times temperature squared.

    `T^2 * mean over classes of KL(Bernoulli(sigmoid(teacher_logits / T)) || Bernoulli(sigmoid(student_logits / T)))`,
    summed over the scored positions in fp32.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, with two classes for each label

    Args:
        student_logits: `[scored, classes]`.
        teacher_logits: `[scored, classes]`.
        temperature: divides the logits of both sides.

    Returns:
        The sum over the scored positions, an fp32 tensor of shape `[]`.

    Example:
        >>> bernoulli_kl_divergence(torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[1.0, 0.0, 3.0]]), temperature=2.0)
        tensor(0.)
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (yes + no).mean(-1).sum()


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
    return (student_logits.float() - teacher_logits.float()).square().mean(-1).sum()


DIVERGENCES: dict[str, Callable[..., torch.Tensor]] = {
    "categorical": kl_divergence,
    "binary": bernoulli_kl_divergence,
    "real": squared_difference,
    "top k": top_k_kl_divergence,
}
"""Divergences by what the logits describe (`Head.distribution`); "top k" for stored top-k targets."""


class DivergenceLoss(Loss):
    """The divergence between the softened outputs of teacher and student: `alpha_kl`.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531

    Args:
        divergence: a function from `DIVERGENCES`.
        temperature: divides the logits of both sides.

    Example:
        >>> logits = Signals(logits=torch.tensor([[1.0, 0.0]]))
        >>> DivergenceLoss(kl_divergence, temperature=2.0)(logits, logits, ScoredItems())
        tensor(0.)
    """

    needs = Needs(logits=True)
    description = "the divergence between the softened outputs of teacher and student"
    citation = HINTON_2015
    options = ("temperature",)

    def __init__(self, divergence: Callable[..., torch.Tensor], temperature: float):
        super().__init__()
        self.divergence, self.temperature = divergence, temperature

    @classmethod
    def from_setup(cls, setup: Setup) -> "DivergenceLoss":
        described = setup.head.distribution if setup.top_k is None else "top k"
        return cls(DIVERGENCES[described], setup.args.temperature)

    def state(self) -> dict[str, object]:
        return {} if self.divergence is squared_difference else {"temperature": self.temperature}

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        return self.divergence(student.logits, teacher.logits, self.temperature)
