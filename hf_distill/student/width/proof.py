"""Checks that a narrower student computes the same as its teacher with the removed units silenced."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from hf_distill.student.proof import differences, evaluating, is_rounding, run, run_whole
from hf_distill.student.width.silence import silenced
from hf_distill.student.width.units import UnitClass


def prove_width(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    classes: Sequence[UnitClass],
    kept: Sequence[Sequence[int]],
    inputs: Mapping[str, torch.Tensor],
) -> None:
    """Runs student and teacher once and compares their outputs.

    Args:
        student: the student.
        teacher: the teacher, whose removed units are silenced.
        classes: the teacher's units, by class.
        kept: for each class, the units that the student has.
        inputs: a batch for both models.

    Raises:
        ValueError: if the outputs differ.
    """
    with evaluating(student), evaluating(teacher), torch.random.fork_rng():
        with silenced(teacher, student, classes, kept):
            expected, below_head = run_whole(teacher, inputs)
        try:
            actual = run(student.base_model if below_head else student, inputs)
        except Exception as error:
            raise ValueError(
                f"A {type(student).__name__} of this size does not run: {error}. Some of its sizes do not fit "
                f"together: leave this size as it is."
            ) from error
    fitting = partial(_in_kept_units, classes, kept)
    for name, difference in differences(expected, actual, fitting).items():
        if not is_rounding(difference, teacher.dtype):
            raise ValueError(
                f"The student's {name} does not match {type(teacher).__name__} with the removed units silenced "
                f"(relative difference {difference:.1e}): the architecture depends on its width in a way that cannot "
                f"be cut, such as a scale computed from it. Leave this size as it is."
            )


def _in_kept_units(
    classes: Sequence[UnitClass], kept: Sequence[Sequence[int]], values: torch.Tensor, own: torch.Tensor
) -> list[torch.Tensor]:
    """The teacher's output as the student may have it: whole, or the kept units of its last dimension."""
    if values.shape == own.shape:
        return [values]
    return [
        values[..., list(units)]
        for of_class, units in zip(classes, kept, strict=True)
        if of_class.num_units == values.shape[-1] and len(units) == own.shape[-1]
    ]
