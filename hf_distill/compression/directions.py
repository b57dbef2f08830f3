"""The directions in which a teacher can be cut, and the sizes of the students that a search tries."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from transformers import PreTrainedModel

from hf_distill.embedding import EmbeddingModel
from hf_distill.student import make_student
from hf_distill.student.architectures import LayerStack, find_layer_stacks
from hf_distill.student.axes import FEED_FORWARD, HEADS, HIDDEN, KEY_VALUE_HEADS, Axis, axis_of, find_axes
from hf_distill.student.proposals import student_shape

logger = logging.getLogger(__name__)

NUM_LAYERS = "num_layers"

STEPS = 6
"""Sizes tried of each width, from a sixth of the teacher's on."""

Sizes = Mapping[str, int]
"""The sizes of a student, by direction. Directions that are not named keep the teacher's size."""


@dataclass(frozen=True)
class Direction:
    """One number of a student that is searched.

    Attributes:
        name: as in `make_student`, such as `intermediate_size`; for a model with several stacks, `num_layers.encoder`.
        smallest, largest, step: the sizes that are tried. The largest is the teacher's.
    """

    name: str
    smallest: int
    largest: int
    step: int

    def sizes(self) -> range:
        return range(self.smallest, self.largest + 1, self.step)

    def share(self, share: float) -> int:
        """The size that is nearest to a share of the teacher's."""
        return min(self.sizes(), key=lambda size: (abs(size - share * self.largest), size))

    def halfway(self, size: int) -> int:
        """The size halfway between this one and the teacher's, or the next above it."""
        return next(own for own in self.sizes() if own >= (size + self.largest) / 2)


@dataclass(frozen=True)
class Directions:
    """The directions of a teacher.

    Attributes:
        teacher: the teacher; of an embedding model, its transformer.
        stacks: its stacks of layers.
        axes: its axes.
        by_name: the directions that can be cut, by name.
    """

    teacher: PreTrainedModel = field(repr=False)
    stacks: Mapping[str, LayerStack] = field(repr=False)
    axes: list[Axis] = field(repr=False)
    by_name: Mapping[str, Direction]

    @classmethod
    def of(cls, teacher: PreTrainedModel) -> "Directions":
        """Finds the directions, and tries each width once: not every width of every architecture can be cut."""
        whole = teacher.transformer if isinstance(teacher, EmbeddingModel) else teacher
        try:
            stacks = find_layer_stacks(whole)
        except ValueError:  # a model such as ALBERT, whose layers share their weights
            stacks = {}
        axes = find_axes(whole)
        depths = [
            Direction(NUM_LAYERS if len(stacks) == 1 else f"{NUM_LAYERS}.{name}", 1, stack.num_layers, 1)
            for name, stack in stacks.items()
            if stack.num_layers > 1
        ]
        found = cls(whole, stacks, axes, {own.name: own for own in [*depths, *_widths(axes)]})
        usable = {name: own for name, own in found.by_name.items() if own in depths or found._can_be_cut(own)}
        if not usable:
            raise ValueError(
                f"{type(whole).__name__} has no layers and no width that make_student can cut: choose "
                f"another teacher. `hf-distill inspect` lists what can be cut."
            )
        return cls(whole, stacks, axes, usable)

    def arguments(self, sizes: Sizes) -> dict[str, Any]:
        """The arguments of `make_student` for a student of these sizes."""
        arguments: dict[str, Any] = {}
        for name, size in sizes.items():
            argument, _, stack = name.partition(".")
            if stack:
                arguments[argument] = {**arguments.get(argument, {}), stack: size}
            else:
                arguments[argument] = size
        if (heads := sizes.get("num_attention_heads")) is not None:
            for axis, hidden in self._with_narrow_heads():
                arguments["hidden_size"] = heads * (hidden.size // axis.size)
        return arguments

    def shape(self, sizes: Sizes) -> PreTrainedModel:
        """A student of these sizes on the meta device."""
        arguments = self.arguments(sizes)
        depth = arguments.pop(NUM_LAYERS, {})
        num_layers = depth if isinstance(depth, dict) else dict.fromkeys(self.stacks, depth)
        return student_shape(self.teacher, self.stacks, self.axes, num_layers, arguments)

    def num_layers(self, sizes: Sizes) -> int:
        """How many layers a student has, in all stacks."""
        own = (
            sizes.get(NUM_LAYERS, sizes.get(f"{NUM_LAYERS}.{name}", stack.num_layers))
            for name, stack in self.stacks.items()
        )
        return sum(own)

    def of_teacher(self) -> dict[str, int]:
        """The sizes of the teacher."""
        return {name: own.largest for name, own in self.by_name.items()}

    def shares(self, depth: float, inner: float = 1.0, width: float = 1.0) -> dict[str, int]:
        """A student with shares of the teacher's layers, feed-forward width, and hidden width and heads."""
        share_of = {NUM_LAYERS: depth, "intermediate_size": inner}
        return {name: own.share(share_of.get(name.partition(".")[0], width)) for name, own in self.by_name.items()}

    def widths(self) -> Iterator[dict[str, int]]:
        """All combinations of widths, each with the teacher's layers."""
        names = [name for name in self.by_name if not name.startswith(NUM_LAYERS)]
        for sizes in product(*(self.by_name[name].sizes() for name in names)):
            yield dict(zip(names, sizes, strict=True))

    def _with_narrow_heads(self) -> list[tuple[Axis, Axis]]:
        """Axes of heads whose width is the hidden width over their number, each with the axis of the hidden width."""
        hidden = {axis.config_path: axis for axis in axis_of(self.axes, HIDDEN)}
        heads = [axis for axis in axis_of(self.axes, HEADS) if not axis.places]
        return [(axis, hidden[axis.config_path]) for axis in heads if axis.config_path in hidden]

    def _can_be_cut(self, direction: Direction) -> bool:
        try:
            make_student(self.teacher, **self.arguments({direction.name: direction.smallest}))
        except ValueError as error:
            logger.info("%s is not cut: %s", direction.name, error)
            return False
        return True


def _widths(axes: list[Axis]) -> list[Direction]:
    directions = []
    heads = _only(axis_of(axes, HEADS))
    groups = _only(axis_of(axes, KEY_VALUE_HEADS))
    hidden = _only(axis_of(axes, HIDDEN))
    if inner := _only(axis_of(axes, FEED_FORWARD)):
        directions.append(_direction("intermediate_size", inner, 8))
    if heads:
        directions.append(_direction("num_attention_heads", heads, heads // groups if groups else 1))
    if hidden and (not heads or all(axis.places for axis in axis_of(axes, HEADS))):
        directions.append(_direction("hidden_size", hidden, 8))
    return [own for own in directions if len(own.sizes()) > 1]


def _only(axes: list[Axis]) -> int | None:
    """The size of all axes; None if there is none, or if they differ."""
    sizes = {axis.size for axis in axes}
    return sizes.pop() if len(sizes) == 1 else None


def _direction(name: str, size: int, multiple: int) -> Direction:
    """A direction whose sizes are multiples of a number, as far as the teacher's size is one."""
    multiple = math.gcd(multiple, size)
    step = max(1, size // STEPS // multiple) * multiple
    smallest = size % step or step
    return Direction(name, smallest, size, step)
