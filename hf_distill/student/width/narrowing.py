"""Makes a narrower student: chooses units, cuts them out, and proves the result."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from transformers import PreTrainedModel

from hf_distill.student.axes import Axis, find_axes
from hf_distill.student.width.cutting import Plan, choose, cut_width, plan_width
from hf_distill.student.width.importance import WIDTHS, WITH_LABELS, WITHOUT_DATA, Batches, by_activation
from hf_distill.student.width.proof import prove_width
from hf_distill.student.width.rotation import find_hidden_units, hidden_states_of, rotated
from hf_distill.student.width.sizes import Size, sizes_by_axis

PCA = "pca"
CHOICES = (*WIDTHS, PCA)
"""How units can be chosen."""


def check_width(width: str, batches: Iterable[Mapping[str, torch.Tensor]] | None, is_narrower: bool) -> None:
    """Checks that the importance is known, that there is data if it needs data, and that there is a size to cut to."""
    if width not in CHOICES:
        raise ValueError(f"width={width!r} is unknown: use {', '.join(map(repr, CHOICES))}.")
    if width != WITHOUT_DATA and not is_narrower:
        raise ValueError(f"width={width!r} would have no effect without a size: give one, such as intermediate_size=.")
    if width != WITHOUT_DATA and batches is None:
        raise ValueError(
            f"width={width!r} needs data: give calibration_data=, batches of the teacher's inputs"
            f"{' with labels' if width == WITH_LABELS else ''}, or use width={WITHOUT_DATA!r}."
        )


class Narrowed(NamedTuple):
    """A narrower model.

    Attributes:
        model: the model.
        sizes: its sizes by axis.
        hidden_units: the hidden units that it kept, in order; None if it kept all, or has principal components instead.
    """

    model: PreTrainedModel
    sizes: dict[Axis, int]
    hidden_units: list[int] | None


def narrowed(
    teacher: PreTrainedModel,
    sizes: Mapping[str, Size | None],
    width: str,
    batches: Iterable[Mapping[str, torch.Tensor]] | None,
    inputs: Mapping[str, torch.Tensor],
) -> Narrowed:
    """Makes a copy of the teacher with other sizes, that computes the same as the teacher without the removed units.

    Args:
        teacher: the model to cut. It does not change.
        sizes: by argument of `make_student`, see `sizes_by_axis`.
        width: how the units that stay are chosen, one of `CHOICES`.
        batches: data for this choice.
        inputs: a small batch, for the proof.

    Raises:
        ValueError: if the sizes do not fit, or if the student does not compute the same.
    """
    axes = find_axes(teacher)
    numbers = sizes_by_axis(teacher, axes, sizes)
    if not numbers:
        return Narrowed(teacher, {}, None)
    plan = plan_width(teacher, numbers, inputs, axes)
    if width == PCA:
        return Narrowed(_by_principal_components(teacher, plan, batches or (), inputs), numbers, None)
    kept = choose(plan, WIDTHS[width](teacher, plan.classes, batches or ()))
    student = cut_width(teacher, plan, kept)
    prove_width(student, teacher, plan.classes, kept, inputs)
    hidden = find_hidden_units(teacher, plan.classes)
    return Narrowed(student, numbers, None if hidden is None else kept[plan.classes.index(hidden)])


def _by_principal_components(
    teacher: PreTrainedModel, plan: Plan, batches: Batches, inputs: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """Keeps the principal components of the hidden states. Other units are chosen by activation."""
    hidden = hidden_states_of(teacher, plan.classes)
    index = plan.classes.index(hidden)
    num_kept = plan.num_kept[index][0]
    whole, scales = rotated(teacher, hidden, batches, num_kept)
    prove_width(whole, teacher, [], [], inputs)
    scores = by_activation(teacher, plan.classes, batches)
    scores[index] = -torch.arange(hidden.num_units, dtype=torch.float64)
    kept = choose(plan, scores)
    student = cut_width(whole, plan, kept)
    with torch.no_grad():
        for name, scale in scales.items():
            cast(torch.Tensor, student.get_submodule(name).weight).fill_(scale)
    prove_width(student, whole, plan.classes, kept, inputs)
    return student
