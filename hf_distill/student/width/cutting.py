"""Makes a model with narrower layers, from the units that are kept."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_distill.student.architectures import skeleton
from hf_distill.student.axes import (
    HEADS,
    HIDDEN,
    KEY_VALUE_HEADS,
    Axis,
    Places,
    axis_of,
    changed_places,
    resized,
    shapes_of,
)
from hf_distill.student.cutting import leave_out_what_is_missing, load_parts
from hf_distill.student.width.units import Place, UnitClass, canonical_names, find_units, layout_of

Numbers = Mapping[Axis, int]
"""The student's sizes by axis."""


@dataclass(frozen=True)
class Plan:
    """What is to be cut: an empty student, and the units of the teacher with the number of those that are kept.

    Attributes:
        student: a model with the student's shapes and empty weights.
        places: the axes of the teacher's weights that change, with their sizes.
        classes: the units, by class.
        num_kept: for each class, how many groups of units are kept, and how many units of each group.
    """

    student: PreTrainedModel
    places: Places
    classes: list[UnitClass]
    num_kept: list[tuple[int, int]]


def plan_width(
    teacher: PreTrainedModel, numbers: Numbers, inputs: Mapping[str, torch.Tensor], axes: Sequence[Axis]
) -> Plan:
    """Finds what has to be cut for these sizes.

    Args:
        teacher: the model to cut.
        numbers: the student's sizes by axis.
        inputs: a small batch.
        axes: all axes of the teacher.

    Raises:
        ValueError: if the sizes do not fit the architecture, or if the model has weights whose units are not found.
    """
    config = student_config(teacher.config, numbers)
    asked = _asked(numbers)
    try:
        student = skeleton(type(teacher), config, teacher.device, teacher.dtype)
    except Exception as error:  # model code may raise anything for a config that it was not made for
        kinds = {axis.kind for axis in numbers}
        hint = "" if HEADS in kinds or HIDDEN not in kinds else ". Give num_attention_heads= too"
        raise ValueError(f"{type(teacher).__name__} does not allow {asked}: {error}{hint}") from error
    leave_out_what_is_missing(student, teacher, [])
    places = changed_places(shapes_of(teacher), shapes_of(student))
    if places is None:
        raise ValueError(f"{type(teacher).__name__} has other weights with {asked}: leave this size as it is.")
    if not places:
        raise ValueError(_shapes_nothing(teacher, numbers))
    _check_saved(teacher, places, asked)
    of_key_values = _of_key_values(teacher, axes)
    known = {name: of_key_values.get(name, {}) | places.get(name, {}) for name in {**of_key_values, **places}}
    classes = find_units(teacher, known, inputs)
    changed = {(canonical, dim) for name, canonical in canonical_names(teacher).items() for dim in places.get(name, ())}
    classes = [own for own in classes if changed & own.rows.keys()]
    _add_rest(teacher, places, classes, asked)
    after = shapes_of(student)
    num_kept = [_num_kept(own, after, numbers) for own in classes]
    _check_heads(classes, num_kept, axes, config, numbers)
    return Plan(student, places, classes, num_kept)


def student_config(config: PreTrainedConfig, numbers: Numbers) -> PreTrainedConfig:
    """A copy of the config with the student's sizes."""
    return resized(
        config,
        {
            (axis.config_path, number): size
            for axis, size in numbers.items()
            for number in (axis.number, *axis.together)
        },
    )


def choose(plan: Plan, scores: Sequence[torch.Tensor]) -> list[list[int]]:
    """The units that are kept of each class, in increasing order: those with the highest scores.

    Heads that share keys are chosen by group: first the groups with the highest sums, then heads of each group.

    Args:
        plan: from `plan_width`.
        scores: `[units]` for each class.
    """
    kept = []
    for own, (num_groups, num_per_group), of_units in zip(plan.classes, plan.num_kept, scores, strict=True):
        groups = groups_of(own)
        sums = of_units[torch.tensor(groups)].sum(1)
        best = sums.argsort(descending=True, stable=True)[:num_groups].sort().values
        chosen = []
        for group in (groups[index] for index in best.tolist()):
            order = of_units[group].argsort(descending=True, stable=True)[:num_per_group]
            chosen += [group[index] for index in order.tolist()]
        kept.append(sorted(chosen))
    return kept


def cut_width(teacher: PreTrainedModel, plan: Plan, kept: Sequence[Sequence[int]]) -> PreTrainedModel:
    """Copies the kept units of the teacher into the plan's student, and returns it.

    Raises:
        ValueError: if weights that the student's config ties have different values.
    """
    rows: dict[Place, torch.Tensor] = {}
    for own, units in zip(plan.classes, kept, strict=True):
        for place, of_units in own.rows.items():
            rows[place] = torch.tensor(sorted({row for unit in units for row in of_units[unit]}))
    names = canonical_names(teacher)

    def kept_rows(name: str, weight: torch.Tensor) -> torch.Tensor:
        for dim in plan.places.get(name, ()):
            weight = weight.index_select(dim, rows[names.get(name, name), dim].to(weight.device))
        return weight

    load_parts(plan.student, teacher.state_dict(), kept_rows)
    return plan.student


def groups_of(own: UnitClass) -> list[list[int]]:
    """The units in groups that have rows in common, such as the heads that share keys. Most are alone."""
    groups: dict[int, list[int]] = {unit: [unit] for unit in range(own.num_units)}
    for of_units in own.rows.values():
        first_with: dict[int, int] = {}
        for unit, rows in enumerate(of_units):
            for row in rows:
                other = first_with.setdefault(row, unit)
                if groups[other] is not groups[unit]:
                    groups[other] += groups[unit]
                    for moved in groups[unit]:
                        groups[moved] = groups[other]
    return list({id(group): sorted(group) for group in groups.values()}.values())


def _check_saved(teacher: PreTrainedModel, places: Places, asked: str) -> None:
    """Checks that all cut weights are saved with the student."""
    patterns = teacher._keys_to_ignore_on_save or ()
    tied = canonical_names(teacher)
    for name in places:
        if any(re.search(pattern, name) for pattern in patterns) and tied.get(name, name) == name:
            raise ValueError(
                f"{type(teacher).__name__} cannot be cut to {asked}: its {name} is not saved, but computed when the "
                f"student is loaded. Leave this size as it is."
            )


def _of_key_values(teacher: PreTrainedModel, axes: Sequence[Axis]) -> Places:
    """The places of shared keys and values. Which heads share them must be known even if they are not cut."""
    before = shapes_of(teacher)
    places: Places = {}
    for axis in axis_of(axes, KEY_VALUE_HEADS):
        for other in (2 * axis.size, axis.size // 2):
            with suppress(Exception):  # model code may raise anything for a config that it was not made for
                changed = skeleton(type(teacher), student_config(teacher.config, {axis: other}))
                leave_out_what_is_missing(changed, teacher, [])
                places |= changed_places(before, shapes_of(changed)) or {}
                break
    return places


def _num_kept(own: UnitClass, after: Mapping[str, torch.Size], numbers: Numbers) -> tuple[int, int]:
    """How many groups of units fit into the student's shapes, and how many units of each."""
    groups = groups_of(own)
    name, dim = main_place(own)
    number, rest = divmod(after[name][dim], width_of(own))
    if not rest and all(len(group) == len(groups[0]) for group in groups):
        for num_groups in range(1, len(groups) + 1):
            per_group = number // num_groups
            if num_groups * per_group == number and per_group <= len(groups[0]):
                units = [unit for group in groups[:num_groups] for unit in group[:per_group]]
                if all(_num_rows(own, place, units) == after[place[0]][place[1]] for place in own.rows):
                    return num_groups, per_group
    raise ValueError(_misfit(own, after, numbers))


def _num_rows(own: UnitClass, place: Place, units: Sequence[int]) -> int:
    return len({row for unit in units for row in own.rows[place][unit]})


def _check_heads(
    classes: Sequence[UnitClass],
    num_kept: Sequence[tuple[int, int]],
    axes: Sequence[Axis],
    config: PreTrainedConfig,
    numbers: Numbers,
) -> None:
    """Checks that heads keep their width."""
    heads = {getattr(reduce(getattr, axis.config_path, config), axis.number) for axis in axis_of(axes, HEADS)}
    for own, (num_groups, per_group) in zip(classes, num_kept, strict=True):
        width = width_of(own)
        if width > 1 and num_groups * per_group not in heads:
            fitting = num_groups * per_group
            raise ValueError(
                f"{_asked(numbers)} would change the width of a head, which is {width}: heads are kept or removed as a "
                f"whole. Use num_attention_heads={fitting} with this hidden width."
            )


def width_of(own: UnitClass) -> int:
    """How many values a unit has: 1, or the width of a head."""
    return len(own.rows[main_place(own)][0])


def main_place(own: UnitClass) -> Place:
    """The place that reads the most rows: each unit has its own there."""
    return max(own.readers.values(), key=lambda place: len({row for rows in own.rows[place] for row in rows}))


def _add_rest(teacher: PreTrainedModel, places: Places, classes: list[UnitClass], asked: str) -> None:
    """Adds the places that no gradient reaches to the hidden states, if they have their size.

    These are tables that are not trained, such as sinusoidal positions, tokens that the run did not need, and outputs
    that nothing reads. The proof finds what does not belong there.

    Raises:
        ValueError: for places that belong to no units.
    """
    names = canonical_names(teacher)
    known = {place for own in classes for place in own.rows}
    wanted = {(names.get(name, name), dim): size for name, dims in places.items() for dim, size in dims.items()}
    rest = {place: size for place, size in wanted.items() if place not in known}
    hidden = max(classes, key=lambda own: len(own.readers), default=None)
    for place, size in rest.items():
        if hidden is None or size != hidden.num_units or not _may_be_left(teacher, place[0]):
            raise ValueError(
                f"{type(teacher).__name__} cannot be cut to {asked}: it is unknown which units dimension {place[1]} of "
                f"{place[0]} has. The module that holds it computes with its weights in a way that hf_distill does not "
                f"follow, or did not take part in the run (then pass example_inputs=, a batch that uses it). If the "
                f"width of a head is the hidden width divided by the number of heads, give both. Otherwise leave this "
                f"size as it is."
            )
        hidden.rows[place] = [(unit,) for unit in range(size)]


def _may_be_left(teacher: nn.Module, name: str) -> bool:
    """Whether a weight may be one that no gradient reaches: no matrix inside a layer."""
    module = teacher.get_submodule(name.rpartition(".")[0])
    return layout_of(module) is None or not any(part.isdigit() for part in name.split("."))


def _asked(numbers: Numbers) -> str:
    return ", ".join(f"{axis.name}={size}" for axis, size in numbers.items())


def _shapes_nothing(teacher: PreTrainedModel, numbers: Numbers) -> str:
    return (
        f"{_asked(numbers)} alone changes no weight of {type(teacher).__name__}: the width of a head is the hidden "
        f"width divided by the number of heads there, so both are cut together. Give hidden_size= too, so that a head "
        f"keeps its width."
    )


def _misfit(own: UnitClass, after: Mapping[str, torch.Size], numbers: Numbers) -> str:
    (name, dim), width = main_place(own), width_of(own)
    groups = groups_of(own)
    what = f"{own.num_units} heads of width {width}" if width > 1 else f"{own.num_units} units"
    shared = f", in groups of {len(groups[0])} that share keys and values" if len(groups[0]) > 1 else ""
    return (
        f"{_asked(numbers)} does not fit: {name} reads {what}{shared}, and the student would have "
        f"{after[name][dim]} values. Whole heads are kept, and each key-value head has the same number of them: give "
        f"num_attention_heads=, num_key_value_heads= and hidden_size= that fit together."
    )
