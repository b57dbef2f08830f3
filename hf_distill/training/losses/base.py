"""The contract of a loss: what it reads, how many items it has, and the sum over them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.scored import Scored


@dataclass(frozen=True)
class Needs:
    """What a loss reads. The trainer computes and keeps nothing else.

    A loss reads logits or hidden states, not both: logits come a piece at a time.

    Attributes:
        logits: of the scored positions, `[scored, classes]`. They are computed a piece at a time, and so is the loss:
            a sum over pieces is the sum.
        last_hidden_state: of all positions, `[batch, length, width]`.
        labels: the hard labels. The batches must then have some.
    """

    logits: bool = False
    last_hidden_state: bool = False
    labels: bool = False


@dataclass(frozen=True)
class Signals:
    """What a loss gets of the student or of the teacher: what it needs. The rest is None.

    Attributes:
        logits: `[scored, classes]`; of a teacher whose targets are stored, it may be a `TopK`.
        last_hidden_state: `[batch, length, width]`; for images and audio `[batch, states, width]`.
    """

    logits: Any = None
    last_hidden_state: Any = None


@dataclass(frozen=True)
class ScoredItems:
    """The items that a loss sums over.

    Attributes:
        labels: for a loss over logits, `[scored]` class indices or -100; `[scored, classes]` of 0.0, 1.0 and -100 for a
            yes or no per class, and of numbers for a regression, NaN where unknown. None if the batch has no labels.
        state_weights: for a loss over hidden states, `[batch, length]`: 1 for an attended position and 0 for padding.
            In images and audio, where an example is one item, each state's share of it.
    """

    labels: Any = None
    state_weights: Any = None


class LossArguments(Protocol):
    """The training arguments that losses are made from."""

    temperature: float
    label_smoothing_factor: float
    project_hidden_states: bool
    seed: int


@dataclass(frozen=True)
class Setup:
    """What a loss of `LOSSES` is made from.

    Attributes:
        args: the training arguments.
        head: the student's.
        student: what the student gives.
        teacher: what the teacher gives, a `HeadSpec`; None without one.
        top_k: how many tokens of the teacher's vocabulary are stored; None where all logits are known.
    """

    args: LossArguments
    head: Head
    student: HeadSpec
    teacher: Any
    top_k: int | None


class Loss(nn.Module):
    """A loss that a `DistillationTrainer` adds to the others, weighted: subclass it, and pass an instance in `losses`.

    `forward` returns the SUM over its items. The trainer divides by the number of items in the whole optimizer step,
    over all micro-batches and processes, so that the loss does not depend on how a step is split: the contract of
    `check_split_invariance`.

    A loss may have parameters of its own, such as a projection. They are trained with the student's optimizer, saved in
    checkpoints, and never saved with the student.

    Attributes:
        needs: what it reads.
        reads_teacher: whether it compares the student with a teacher.
        description: what the loss is, in half a sentence, for the model card.
        citation: BibTeX for the model card, or "".

    Shapes:
        student, teacher: `Signals` with what `needs` names; `teacher` is None if `reads_teacher` is False
        scored: `ScoredItems`
        returns: a scalar in fp32, the sum over items

    Example:
        >>> class ReverseKL(Loss):
        ...     needs = Needs(logits=True)
        ...     description = "the KL divergence from the student's distribution to the teacher's"
        ...
        ...     def forward(self, student, teacher, scored):
        ...         student_log_probs = student.logits.float().log_softmax(-1)
        ...         teacher_log_probs = teacher.logits.float().log_softmax(-1)
        ...         return (student_log_probs.exp() * (student_log_probs - teacher_log_probs)).sum()
        >>> losses = {"reverse_kl": (ReverseKL(), 0.5)}
        >>> trainer = DistillationTrainer(student, args, teacher_model=teacher, losses=losses)
    """

    needs: ClassVar[Needs] = Needs()
    reads_teacher: ClassVar[bool] = True
    description: ClassVar[str] = ""
    citation: ClassVar[str] = ""

    @classmethod
    def from_setup(cls, setup: Setup) -> "Loss":
        """The loss that the arguments ask for, for a loss in `LOSSES`."""
        return cls()

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Checks, when the trainer is made, that student and teacher can be compared.

        Args:
            student: what the student gives.
            teacher: what the teacher gives; None without one, if `reads_teacher` is False.

        Raises:
            ValueError: if they cannot.
        """

    def state(self) -> Mapping[str, object]:
        """What the loss depends on, as JSON has it. A training that resumes with another state warns."""
        return {}

    def items(self, scored: Scored) -> torch.Tensor:
        """`[]`: how many items a batch has. It follows from the batch alone, not from what a model makes of it.

        By default the labelled positions if `needs` has labels, the scored positions if it has logits, and the attended
        positions if it has hidden states.
        """
        if self.needs.labels:
            return scored.labelled.sum()
        return scored.positions.sum() if self.needs.logits else scored.attended.sum()

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        """The sum over the items."""
        raise NotImplementedError(f"{type(self).__name__} has no forward, which returns the sum over its items.")
