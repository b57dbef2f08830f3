"""Several teachers that teach as one: the mean of their outputs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hf_distill.adapters import transformers_model
from hf_distill.training.losses.base import Loss
from hf_distill.training.losses.making import how_to_leave_out
from hf_distill.training.scoring.alignment import HeadSpec, has_default_names, head_spec, named_inputs
from hf_distill.training.scoring.capture import LayerCapture
from hf_distill.training.scoring.forward import ScoredOutput
from hf_distill.training.scoring.scored import Scored
from hf_distill.training.teacher.columns import TARGET_COLUMNS, JoinedSource
from hf_distill.training.teacher.live import Teacher
from hf_distill.training.teacher.means import MEANS, mean_of_logits
from hf_distill.training.teacher.stored import StoredTeacher, TargetsCollator
from hf_distill.training.teacher.weights import WeightsCollator, fixed_weights
from hf_distill.training.training_args import DistillationTrainingArguments


class TeacherEnsemble:
    """Several teachers, all live or all stored, that a loss reads like one.

    Each teacher reads a batch once. Their logits are averaged a piece at a time, at the temperature that the losses
    have at this moment. Hidden states are those of the first teacher, because each teacher has a space of its own.

    Args:
        teachers: the teachers by name, as written in the user's code.
        student: the student.
        args: the training arguments, which set the mean and the weights.
        source: the joined targets; None for live teachers.

    Raises:
        ValueError: if the teachers differ in labels, or if the weights do not match them.
    """

    top_k = num_samples = None  # all logits are known

    def __init__(
        self,
        teachers: Mapping[str, Teacher] | Mapping[str, StoredTeacher],
        student: PreTrainedModel | PeftModel,
        args: DistillationTrainingArguments,
        source: JoinedSource | None = None,
    ):
        student = transformers_model(student)
        check_labels_agree({name: teacher.head_spec for name, teacher in teachers.items()}, head_spec(student).labels)
        self.teachers: list[Teacher | StoredTeacher] = list(teachers.values())
        self.args, self.source = args, source
        self.head, self.head_spec = self.teachers[0].head, self.teachers[0].head_spec
        self._num_classes: int | None = None
        if self.head.over_vocabulary:  # some vocabularies may be padded further
            self._num_classes = min(teacher.head_spec.logits_per_token or 0 for teacher in self.teachers)
        self._readers: dict[str, Loss] = {}
        column = args.teacher_weights_column
        taken = {*named_inputs(student), *self._inputs_of_teachers, *self.head.label_names, *TARGET_COLUMNS}
        if column is not None and column in taken:
            raise ValueError(
                f"teacher_weights_column={column!r} is an input, a label or a target: keep the weights in another "
                f"column."
            )
        fixed_weights(args.teacher_weights, len(self.teachers))

    @property
    def model(self) -> PreTrainedModel | None:
        """The first teacher, whose hidden states are read; None if the teachers are stored."""
        return self.teachers[0].model

    def prepare_for(self, losses: Mapping[str, Loss], capture: LayerCapture | None = None) -> None:
        """Prepares the teachers for the losses, and reads the weights.

        Raises:
            ValueError: if no loss reads the logits of the other teachers, or if temperatures differ.
        """
        readers = {name: loss for name, loss in losses.items() if loss.reads_teacher}
        self._readers = {name: loss for name, loss in readers.items() if loss.needs.logits}
        if readers and not self._readers:
            raise ValueError(
                f"Of {len(self.teachers)} teachers only the first would be read, because {' and '.join(readers)} reads "
                f"hidden states, which come from the first teacher: give one teacher, or set alpha_kl above 0."
            )
        first, *others = self.teachers
        first.prepare_for(losses, capture)
        for other in others:
            other.prepare_for(self._readers)
        weights = fixed_weights(self.args.teacher_weights, len(self.teachers))
        self._weights = torch.tensor([weights], device=self.args.device)
        self._mean = MEANS[self.args.teacher_mean][self.head_spec.distribution]
        self._temperature()

    @property
    def inputs(self) -> set[str]:
        """The entries of a batch that the teachers read, with the column of weights."""
        return {*self._inputs_of_teachers, *filter(None, [self.args.teacher_weights_column])}

    @property
    def _inputs_of_teachers(self) -> set[str]:
        return {name for teacher in self.teachers for name in teacher.inputs}

    def state(self) -> dict[str, object]:
        """The record of the teachers in a checkpoint."""
        states = [teacher.state() for teacher in self.teachers]
        weights: object = self.args.teacher_weights_column
        if weights is None:
            weights = fixed_weights(self.args.teacher_weights, len(self.teachers))
        return {
            **{name: [state[name] for state in states] for name in states[0]},
            "teacher_mean": self.args.teacher_mean,
            "teacher_weights": weights,
        }

    def collator(self, collator: Callable[[Sequence], dict]) -> Callable[[Sequence], dict]:
        """Wraps a collator so that its batches contain the targets, if they are stored, and the weights of the rows."""
        if self.source is not None:
            collator = TargetsCollator(collator, self.head, self.source)
        column = self.args.teacher_weights_column
        return collator if column is None else WeightsCollator(collator, column, len(self.teachers))

    def can_read(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """Whether a batch has the weights of its rows, and all targets that the losses read."""
        column = self.args.teacher_weights_column
        return (column is None or column in inputs) and all(teacher.can_read(inputs) for teacher in self.teachers)

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        scored: Scored,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> ScoredOutput:
        """Runs each teacher on a batch without labels.

        Returns:
            The outputs. The logits are the mean, in the student's order of classes. The hidden states are those of the
            first teacher.

        Raises:
            ValueError: if the batch has no weights, or if the losses have different temperatures now.
        """
        weights = self._weights_of(inputs, scored)
        outputs: list[ScoredOutput] = []
        for teacher in self.teachers:
            not_its_own = self.inputs - teacher.inputs
            own_inputs = {name: value for name, value in inputs.items() if name not in not_its_own}
            output = teacher(own_inputs, scored, autocast)
            outputs.append(replace(output, last_hidden_state=None) if outputs else output)
        temperature = self._temperature()

        @torch.no_grad()
        def mean(piece: slice) -> torch.Tensor:
            logits = (output.logits(piece)[:, : self._num_classes] for output in outputs)
            return self._mean(logits, weights if weights is self._weights else weights[piece], temperature)

        return replace(outputs[0], head_inputs=_Pieces(), head=mean)

    def _weights_of(self, inputs: Mapping[str, torch.Tensor], scored: Scored) -> torch.Tensor:
        """The weights: `[1, teachers]`, or `[scored, teachers]` from the column of weights."""
        column = self.args.teacher_weights_column
        if column is None:
            return self._weights
        if column not in inputs:
            raise ValueError(
                f"The batch has no teacher_weights_column={column!r}, only {', '.join(inputs)}: every row needs a list "
                f"of {len(self.teachers)} weights."
            )
        return self.head.of_positions(inputs[column], scored)

    def _temperature(self) -> float:
        """The temperature that the losses have now. A loss without a temperature reads the distribution at 1."""
        if self._mean is mean_of_logits:
            return 1.0  # it is ignored
        temperatures = {name: float(getattr(loss, "temperature", 1.0)) for name, loss in self._readers.items()}
        if len(set(temperatures.values())) > 1:
            each = ", ".join(f"{name} at {temperature:g}" for name, temperature in temperatures.items())
            raise ValueError(
                f"The mean of the teachers' probabilities depends on the temperature, but losses read it at different "
                f"ones: {each}. Give all the same temperature, set teacher_mean='logits', or "
                f"{' or '.join(how_to_leave_out(name, loss) for name, loss in self._readers.items())}."
            )
        return next(iter(temperatures.values()), 1.0)


class _Pieces:
    """Stands for the inputs of several heads: a piece is the slice itself, which each teacher applies to its own."""

    def __getitem__(self, piece: slice) -> slice:
        return piece


def check_labels_agree(teachers: Mapping[str, HeadSpec], student_labels: list[str] | None = None) -> None:
    """Checks that all teachers have the same labels, and that their order is known.

    Args:
        teachers: the teachers' outputs by name.
        student_labels: the student's labels; None if the student or its labels are not known.

    Raises:
        ValueError: if labels differ, or if only the student's default names could say which class is which.
    """
    named = {
        name: spec.labels
        for name, spec in teachers.items()
        if spec.labels is not None and not has_default_names(spec.labels)
    }
    if not named:
        return
    first, *others = named
    for other in others:
        if sorted(named[other]) != sorted(named[first]):
            raise ValueError(
                f"{first} has the labels {named[first]} and {other} {named[other]}, but all teachers must have the "
                f"same: leave out one of them, or set the same id2label and label2id in both."
            )
        if named[other] != named[first] and student_labels is not None and has_default_names(student_labels):
            raise ValueError(
                f"{first} has the labels {named[first]} and {other} {named[other]}, in another order, and the "
                f"student's labels have default names, so they cannot be matched by name: set id2label and label2id of "
                f"the student."
            )
