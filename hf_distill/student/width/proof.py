"""Checks that a narrower student computes the same as its teacher with the removed units silenced."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from hf_distill.student.proof import evaluating, run
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
            try:
                expected, below_head = run(teacher, inputs), False
            except Exception:  # a head that needs other inputs, such as multiple choice
                expected, below_head = run(teacher.base_model, inputs), True
        try:
            actual = run(student.base_model if below_head else student, inputs)
        except Exception as error:
            raise ValueError(
                f"A {type(student).__name__} of this size does not run: {error}. Some of its sizes do not fit "
                f"together: leave this size as it is."
            ) from error
    compared = 0
    for name, values in expected.items():
        own = actual.get(name)
        if not isinstance(values, torch.Tensor) or not isinstance(own, torch.Tensor):
            continue
        compared += 1
        candidates = _in_kept_units(values, own, classes, kept)
        differences = [_relative(own, candidate) for candidate in candidates]
        if not min(differences, default=float("inf")) <= torch.finfo(teacher.dtype).eps ** 0.5:
            raise ValueError(
                f"The student's {name} does not match {type(teacher).__name__} with the removed units silenced "
                f"(relative difference {min(differences, default=float('inf')):.1e}): the architecture depends on its "
                f"width in a way that cannot be cut, such as a scale computed from it. Leave this size as it is."
            )
    if not compared:
        raise ValueError(
            f"{type(teacher).__name__} and its student have no output tensor in common: the teacher returns "
            f"{', '.join(expected)}. Pass example_inputs= for which both return the same tensor."
        )


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


def _in_kept_units(
    values: torch.Tensor, own: torch.Tensor, classes: Sequence[UnitClass], kept: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The teacher's output as the student may have it: whole, or the kept units of its last dimension."""
    if values.shape == own.shape:
        return [values]
    return [
        values[..., list(units)]
        for of_class, units in zip(classes, kept, strict=True)
        if of_class.num_units == values.shape[-1] and len(units) == own.shape[-1]
    ]
