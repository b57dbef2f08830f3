"""Finds the numbers of a config that shape weights, and which axis of which weight each one governs."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_distill.student.architectures import LayerStack, config_parts, find_layer_stacks, skeleton, with_layers

VOCABULARY, HIDDEN, HEADS, KEY_VALUE_HEADS, FEED_FORWARD, OTHER = (
    "vocabulary",
    "hidden width",
    "attention heads",
    "key-value heads",
    "feed-forward width",
    "other",
)
"""What the units of an axis are."""

Places = dict[str, dict[int, int]]
"""For each weight by name, the size of each of its dimensions that a number of the config governs."""

UNSET = re.compile(r"inner|ffn|intermediate|feed_forward|mlp_dim")
"""Names of numbers that a config may leave out, for a multiple of the hidden width."""

INSIDE = re.compile(r"head|kv|inter|inner|ff")
"""In names of numbers that are not the hidden width, even if they shape most weights of a layer."""

NOT_A_WIDTH = re.compile(r"head|kv|rank|expert|group|kernel|bucket|ratio|state|position")
NOT_A_NUMBER_OF_HEADS = re.compile(r"dim|size|width|channels|rank|dropout|prob|type|id|ratio")


@dataclass(frozen=True)
class Axis:
    """A number of the config that shapes weights.

    Attributes:
        kind: what its units are, such as "feed-forward width".
        number: its name in the config.
        config_path: path of its config within the model's config: `()`, or for example `("text_config",)`.
        size: its value in the model.
        places: the axes of weights that it governs, with their sizes. Only of the first layers of a stack, which stand
            for all.
        stack: name of the only stack of layers that it shapes; None if there are several, or none.
        together: numbers of the same config that must have the same value.
    """

    kind: str
    number: str
    config_path: tuple[str, ...]
    size: int
    places: Places = field(repr=False, hash=False, compare=False)
    stack: str | None = None
    together: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its full name in the config, such as `text_config.hidden_size`."""
        return ".".join((*self.config_path, self.number))


def find_axes(model: PreTrainedModel) -> list[Axis]:
    """Finds the numbers of the model's config that shape its weights, and which axis of which weight each one governs.

    Two models without weights whose configs differ in one number are compared: each axis that changed belongs to that
    number. This works without knowledge of the architecture, and no weights are read or allocated.

    Numbers that change which weights there are, such as the number of layers, are left out. A number of heads that
    shapes nothing has no places: the width of a head is then the hidden width divided by it, as in BERT.

    Args:
        model: a transformers model. It may be on the meta device.

    Example:
        >>> for axis in find_axes(AutoModel.from_config(BertConfig())):
        ...     print(axis.name, axis.size, axis.kind)
        vocab_size 30522 vocabulary
        hidden_size 768 hidden width
        num_attention_heads 12 attention heads
        intermediate_size 3072 feed-forward width
    """
    config, stacks = _shallow(model)
    whole = shapes_of(skeleton(type(model), config))
    axes = []
    for path, part in config_parts(config):
        joined: set[str] = set()
        for number, value in sorted(vars(part).items(), key=lambda entry: _order(entry[0])):
            if number not in joined and (_is_size(value) or (value is None and UNSET.search(number))):
                places, together = _governed(type(model), config, path, number, value, whole)
                kind = _kind(number, places, model, stacks, whole)
                if kind == HIDDEN:
                    together += _derived(part, number, value)
                joined.update(together)
                if kind is not None:
                    stack = _only_stack(number, path, places, stacks)
                    size = value or min(size for dims in places.values() for size in dims.values())
                    axes.append(Axis(kind, number, path, size, places, stack, together))
    return axes


def axis_of(axes: Sequence[Axis], kind: str) -> list[Axis]:
    """The axes of one kind."""
    return [axis for axis in axes if axis.kind == kind]


def resized(config: PreTrainedConfig, numbers: Mapping[tuple[tuple[str, ...], str], int]) -> PreTrainedConfig:
    """A copy of the config with other values of these numbers, by config path and name."""
    config = copy.deepcopy(config)
    for (path, number), size in numbers.items():
        setattr(reduce(getattr, path, config), number, size)
    return config


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}


def changed_places(before: Mapping[str, torch.Size], after: Mapping[str, torch.Size]) -> Places | None:
    """The axes of weights whose sizes differ, with the sizes before; None if the weights themselves differ."""
    if before.keys() != after.keys() or any(len(before[name]) != len(after[name]) for name in before):
        return None
    places: Places = {}
    for name, shape in before.items():
        changed = {dim: size for dim, size in enumerate(shape) if size != after[name][dim]}
        if changed:
            places[name] = changed
    return places


def _shallow(model: PreTrainedModel) -> tuple[PreTrainedConfig, dict[str, LayerStack]]:
    """The config with as few layers as are needed, and the stacks."""
    try:
        stacks = find_layer_stacks(model)
    except ValueError:
        return model.config, {}
    for few in (1, 2):
        with suppress(Exception):  # some models need layers of every kind
            config = with_layers(
                model.config, {stack: list(range(min(few, stack.num_layers))) for stack in stacks.values()}
            )
            skeleton(type(model), config)
            return config, stacks
    return model.config, stacks


def _governed(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    path: tuple[str, ...],
    number: str,
    value: int | None,
    whole: Mapping[str, torch.Size],
) -> tuple[Places, tuple[str, ...]]:
    """What changes with this number, and the numbers that have to change with it.

    A number such as ELECTRA's `embedding_size` may be the same as the hidden width, so that no projection is needed.
    """
    part = reduce(getattr, path, config)
    others = [8, 16] if value is None else [2 * value, value // 2, 3 * value, value + 1]
    same = [name for name, other in vars(part).items() if name != number and other == value and _is_size(other)]
    for other in others:
        if not other or other == value:
            continue
        for together in [(), *((name,) for name in same)]:
            numbers = {(path, name): other for name in (number, *together)}
            with suppress(Exception):  # model code may raise anything for a config that it was not made for
                places = changed_places(whole, shapes_of(skeleton(model_class, resized(config, numbers))))
                if places is not None:
                    return places, together if places else ()
    return {}, ()


def _derived(part: PreTrainedConfig, number: str, value: int | None) -> tuple[str, ...]:
    """Numbers that were set from this one, such as DeBERTa's `pooler_hidden_size`."""
    return tuple(
        name for name, other in vars(part).items() if name.endswith(f"_{number}") and other == value and _is_size(other)
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _order(number: str) -> int:
    """The order in which numbers are listed: by what they usually are."""
    words = ("vocab", "hidden_size", "d_model", "embd", "dim", "head", "inter", "ff")
    return next((rank for rank, word in enumerate(words) if word in number), len(words))


def _kind(
    number: str,
    places: Places,
    model: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    whole: Mapping[str, torch.Size],
) -> str | None:
    """What the units of a number are; None if it is neither an axis nor a number of heads."""
    is_heads = "head" in number and not NOT_A_NUMBER_OF_HEADS.search(number)
    if not places:
        return HEADS if is_heads and not _counts_key_values(number) else None
    if "vocab" in number:
        return VOCABULARY if 0 in places.get(_embedding_name(model), ()) else OTHER
    first_layers = [f"{stack.path}.0." for stack in stacks.values()] or [""]  # ALBERT has no stack
    if not INSIDE.search(number) and any(_is_in_most_weights(places, prefix, whole) for prefix in first_layers):
        return HIDDEN
    if is_heads:
        return KEY_VALUE_HEADS if _counts_key_values(number) else HEADS
    is_inner = _is_inner(number, places, stacks) and _embedding_name(model) not in places
    return FEED_FORWARD if is_inner else OTHER


def _is_in_most_weights(places: Places, prefix: str, whole: Mapping[str, torch.Size]) -> bool:
    """Whether a number shapes most weights of a layer, and not only matrices."""
    first = [name for name in whole if name.startswith(prefix) and whole[name]]
    shaped = [name for name in first if name in places]
    return len(shaped) > len(first) / 2 and any(len(whole[name]) == 1 for name in shaped)


def _is_inner(number: str, places: Places, stacks: Mapping[str, LayerStack]) -> bool:
    """Whether a number is a width inside the layers, that one weight writes and another reads."""
    paths = [f"{stack.path}." for stack in stacks.values()] or [""]
    in_layers = all(any(name.startswith(path) for path in paths) for name in places)
    dims = [dim for of_weight in places.values() for dim in of_weight]
    is_read_and_written = len(places) > 1 and len(set(dims)) > 1
    return in_layers and is_read_and_written and not NOT_A_WIDTH.search(number)


def _counts_key_values(number: str) -> bool:
    return "key_value" in number or "kv" in number


def _embedding_name(model: PreTrainedModel) -> str:
    """Name of the weight of the input embeddings; of the model's first weight if it reads no tokens."""
    with suppress(Exception):  # models without one raise NotImplementedError or AttributeError
        embeddings = model.get_input_embeddings()
        names = {id(module): name for name, module in model.named_modules()}
        return f"{names[id(embeddings)]}.weight"
    return ""


def _only_stack(number: str, path: tuple[str, ...], places: Places, stacks: Mapping[str, LayerStack]) -> str | None:
    shaped = [
        name
        for name, stack in stacks.items()
        if any(weight.startswith(f"{stack.path}.") for weight in places)
        or (not places and stack.config_path == path and (name in number or _is_alone(stack, stacks)))
    ]
    return shaped[0] if len(shaped) == 1 else None


def _is_alone(stack: LayerStack, stacks: Mapping[str, LayerStack]) -> bool:
    """Whether no other stack has the same config."""
    return sum(other.config_path == stack.config_path for other in stacks.values()) == 1
