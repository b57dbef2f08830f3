"""Students that can be made from a model: with fewer layers, narrower layers, or fewer tokens."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from transformers import BertConfig, PreTrainedModel

from hf_distill.student.architectures import LayerStack, skeleton
from hf_distill.student.axes import (
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    KEY_VALUE_HEADS,
    Axis,
    axis_of,
    changed_places,
    shapes_of,
)
from hf_distill.student.cutting import empty_student, leave_out_what_is_missing
from hf_distill.student.distilbert import to_distilbert
from hf_distill.student.layer_selection import select_layers
from hf_distill.student.vocabulary.config_ids import remap, vocabulary_size, with_vocabulary
from hf_distill.student.vocabulary.weights import config_ids
from hf_distill.student.width.cutting import student_config
from hf_distill.student.width.sizes import KINDS, Size, sizes_by_axis

HALF = Fraction(1, 2)

SHARES = [Fraction(3, 4), Fraction(2, 3), HALF, Fraction(1, 3), Fraction(1, 6)]
"""Shares of the teacher's layers in the students proposed."""

FEWER_TOKENS = 30_000
"""The size of the vocabulary that is proposed."""

MANY_TOKENS = 40_000
"""Vocabularies of at least this size are proposed to get smaller."""

Sizes = dict[str, Size]
"""By argument of `make_student`."""


@dataclass(frozen=True)
class Proposal:
    """A student that can be made.

    Attributes:
        student: the student with empty weights.
        arguments: of `make_student`. Empty if it does not take part.
        keep: argument of `trim_vocabulary`, or None if the vocabulary stays.
    """

    student: PreTrainedModel = field(repr=False, compare=False)
    arguments: dict[str, Any]
    keep: int | None = None

    @property
    def call(self) -> str:
        """How it is made, in Python."""
        arguments = ", ".join(["teacher", *(f"{name}={value!r}" for name, value in self.arguments.items())])
        student = f"make_student({arguments})" if self.arguments else "teacher"
        return student if self.keep is None else f"trim_vocabulary({student}, tokenizer, keep={self.keep})"


def possible_students(model: PreTrainedModel, stacks: Mapping[str, LayerStack], axes: Sequence[Axis]) -> list[Proposal]:
    """Students with some shares of the layers, with half of each width, with both, and with a smaller vocabulary.

    Shapes are known without weights. Whether the units of a width are independent, so that they can be cut, is only
    known when the student is made.

    Args:
        model: the teacher. Its weights are not read.
        stacks: its stacks of layers.
        axes: its axes.
    """
    proposals = _shallower(model, stacks)
    narrower = _narrower(model, axes)
    proposals += narrower
    if narrower and (both := _with_layers(narrower[-1], stacks, HALF)):
        proposals.append(both)
    smallest = proposals[-1] if narrower else None
    if (trimmed := _with_fewer_tokens(model)) is not None:
        proposals.append(Proposal(trimmed, {}, FEWER_TOKENS))
        if smallest is not None and (trimmed := _with_fewer_tokens(smallest.student)) is not None:
            proposals.append(Proposal(trimmed, smallest.arguments, FEWER_TOKENS))
    return proposals


def student_shape(
    model: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    axes: Sequence[Axis],
    num_layers: Mapping[str, int],
    sizes: Sizes,
) -> PreTrainedModel:
    """The student with empty weights that has these sizes.

    Args:
        model: the teacher. Its weights are not read.
        stacks: its stacks of layers.
        axes: its axes.
        num_layers: number of layers, by stack. Stacks that are not named keep theirs.
        sizes: by argument of `make_student`, such as `intermediate_size`.

    Raises:
        ValueError: if the teacher cannot have such a student.
    """
    numbers = sizes_by_axis(model, axes, sizes)
    narrow = model
    if numbers:
        narrow = skeleton(type(model), student_config(model.config, numbers))
        leave_out_what_is_missing(narrow, model, [])
    kept = {
        name: select_layers(stack.num_layers, num_layers.get(name, stack.num_layers)) for name, stack in stacks.items()
    }
    return empty_student(narrow, stacks, kept)[0] if kept else narrow


def _shallower(model: PreTrainedModel, stacks: Mapping[str, LayerStack]) -> list[Proposal]:
    """Students with some shares of the layers, deepest first. For BERT also a DistilBERT with half of the layers."""
    proposals: list[Proposal] = []
    for share in SHARES:
        proposal = _with_layers(Proposal(model, {}), stacks, share)
        if proposal is None:
            continue
        if not any(proposal.arguments == other.arguments for other in proposals):
            proposals.append(proposal)
        if share == HALF and isinstance(model.config, BertConfig):
            with suppress(ValueError):  # heads that DistilBERT does not have
                distilbert = to_distilbert(proposal.student)
                proposals.append(Proposal(distilbert, {**proposal.arguments, "family": "distilbert"}))
    return proposals


def _with_layers(proposal: Proposal, stacks: Mapping[str, LayerStack], share: Fraction) -> Proposal | None:
    """The same student with this share of the layers; None if there is none."""
    num_layers = {name: max(1, int(stack.num_layers * share)) for name, stack in stacks.items()}
    if all(num_layers[name] == stack.num_layers for name, stack in stacks.items()):
        return None
    kept = {name: select_layers(stack.num_layers, num_layers[name]) for name, stack in stacks.items()}
    try:
        student, _ = empty_student(proposal.student, stacks, kept)
    except ValueError:  # layers of different kinds cannot replace each other
        return None
    return Proposal(student, {"num_layers": _one_or_all(num_layers), **proposal.arguments})


def _narrower(model: PreTrainedModel, axes: Sequence[Axis]) -> list[Proposal]:
    """Students with half of the feed-forward width, with half of the heads and the hidden width, and with both."""
    inner = _half(axis_of(axes, FEED_FORWARD))
    heads, hidden = _half_of_heads(axes), _half_of_hidden(axes)
    proposals = [proposal] if (proposal := _narrowed(model, axes, inner)) else []
    for sizes in (heads | hidden, hidden, heads):
        if proposal := _narrowed(model, axes, sizes):
            proposals.append(proposal)
            break
    if len(proposals) == 2:
        both = _narrowed(model, axes, proposals[0].arguments | proposals[1].arguments)
        # GPT-2's feed-forward width follows the hidden width, so it is halved already.
        if both is not None and shapes_of(both.student) != shapes_of(proposals[1].student):
            proposals.append(both)
    return proposals


def _narrowed(model: PreTrainedModel, axes: Sequence[Axis], sizes: Sizes) -> Proposal | None:
    """A student with these sizes; None if there is none."""
    with suppress(Exception):  # model code may raise anything for a config that it was not made for
        numbers = sizes_by_axis(model, axes, sizes)
        student = skeleton(type(model), student_config(model.config, numbers))
        leave_out_what_is_missing(student, model, [])
        if changed_places(shapes_of(model), shapes_of(student)):
            return Proposal(student, dict(sizes))
    return None


def _half(axes: Sequence[Axis]) -> Sizes:
    return _argument({axis: axis.size // 2 for axis in axes if axis.size > 1})


def _half_of_heads(axes: Sequence[Axis]) -> Sizes:
    """Half of the heads. Heads that share keys and values are kept or removed together."""
    shared = {axis.config_path: axis.size for axis in axis_of(axes, KEY_VALUE_HEADS)}
    halves = {}
    for axis in axis_of(axes, HEADS):
        groups = shared.get(axis.config_path, axis.size)
        if axis.size > 1 and axis.size % groups == 0:
            halves[axis] = groups // 2 * (axis.size // groups)
    return _argument(halves)


def _half_of_hidden(axes: Sequence[Axis]) -> Sizes:
    """The hidden width that leaves the heads their width if `_half_of_heads` are left."""
    heads = {axis.config_path: axis for axis in axis_of(axes, HEADS) if not axis.places}
    halves = {}
    for axis in axis_of(axes, HIDDEN):
        own = heads.get(axis.config_path)
        halves[axis] = axis.size // 2 if own is None else own.size // 2 * (axis.size // own.size)
    return _argument(halves)


def _argument(numbers: Mapping[Axis, int]) -> Sizes:
    """Sizes of axes of one kind, as an argument of `make_student`."""
    by_name = {axis.stack or axis.name: size for axis, size in numbers.items() if size > 0}
    if len(by_name) < len(numbers) and len(set(numbers.values())) > 1:  # several in one stack cannot be named
        return {}
    arguments = {kind: argument for argument, kind in KINDS.items()}
    return {arguments[axis.kind]: _one_or_all(by_name) for axis in numbers if by_name}


def _one_or_all(numbers: Mapping[str, int]) -> int | dict[str, int]:
    """One number if all are the same."""
    return next(iter(numbers.values())) if len(set(numbers.values())) == 1 else dict(numbers)


def _with_fewer_tokens(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model with fewer tokens; None if it has not many, or if they cannot be removed."""
    with suppress(Exception):  # model code may raise anything for a config that it was not made for
        size = vocabulary_size(model.config)
        if size >= MANY_TOKENS:
            config = with_vocabulary(model.config, size, FEWER_TOKENS)
            remap(config, {old: FEWER_TOKENS - 1 for old in config_ids(model) if old >= FEWER_TOKENS}, FEWER_TOKENS)
            trimmed = skeleton(type(model), config)
            leave_out_what_is_missing(trimmed, model, [])
            return trimmed
    return None
