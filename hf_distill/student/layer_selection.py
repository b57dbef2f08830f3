"""Chooses which of the teacher's layers the student keeps: pure functions from layer counts to indices."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

Layers = str | Sequence[int]
"""Name of a strategy, or layer indices."""


def alternate(num_teacher_layers: int, num_layers: int) -> list[int]:
    """Every other layer from layer 0, as in DistilBERT: `(12, 6) -> [0, 2, 4, 6, 8, 10]`.

    For other ratios, layer `floor(i * num_teacher_layers / num_layers)`: `(12, 4) -> [0, 3, 6, 9]`.
    """
    return [i * num_teacher_layers // num_layers for i in range(num_layers)]


def spread(num_teacher_layers: int, num_layers: int) -> list[int]:
    """Evenly spaced from the first layer to the last: `(12, 4) -> [0, 4, 7, 11]`. A single layer is the last one."""
    if num_layers == 1:
        return [num_teacher_layers - 1]
    # Integer arithmetic that rounds halves up. Indices are all different, because the step is at least 1.
    gaps = num_layers - 1
    return [(2 * i * (num_teacher_layers - 1) + gaps) // (2 * gaps) for i in range(num_layers)]


def first(num_teacher_layers: int, num_layers: int) -> list[int]:
    """The layers closest to the embeddings: `(12, 4) -> [0, 1, 2, 3]`."""
    return list(range(num_layers))


def last(num_teacher_layers: int, num_layers: int) -> list[int]:
    """The layers closest to the head: `(12, 4) -> [8, 9, 10, 11]`."""
    return list(range(num_teacher_layers - num_layers, num_teacher_layers))


STRATEGIES: dict[str, Callable[[int, int], list[int]]] = {
    "alternate": alternate,
    "spread": spread,
    "first": first,
    "last": last,
}

CALIBRATED = "calibrated"
INFLUENCE = "influence"
ON_DATA = (CALIBRATED, INFLUENCE)
"""The strategies that need the model and data, not only layer counts."""


def requests_of_stacks(
    num_teacher_layers: Mapping[str, int],
    num_layers: int | Mapping[str, int] | None = None,
    layers: Layers | Mapping[str, Layers] | None = None,
) -> dict[str, tuple[int | None, Layers]]:
    """Resolves the arguments for each stack: how many layers (None for half of them), and which.

    Args:
        num_teacher_layers: number of layers of each of the teacher's stacks, by name.
        num_layers: one number for all stacks, or a number by name.
        layers: one choice for all stacks, or a choice by name. Stacks that neither mapping names keep all layers.

    Raises:
        ValueError: if a name is not one of the stacks, or if indices are given without a name for several stacks.

    Example:
        >>> requests_of_stacks({"encoder": 12, "decoder": 12}, num_layers={"decoder": 3})
        {'encoder': (12, 'alternate'), 'decoder': (3, 'alternate')}
    """
    given = {"num_layers": num_layers, "layers": layers}
    by_name = {option: value for option, value in given.items() if isinstance(value, Mapping)}
    for option, value in by_name.items():
        if unknown := sorted(set(value) - set(num_teacher_layers)):
            raise ValueError(
                f"{option}={dict(value)!r} names {', '.join(map(repr, unknown))}, but the teacher has the stacks "
                f"{', '.join(map(repr, num_teacher_layers))}."
            )
    if not isinstance(layers, str | Mapping | None) and len(num_teacher_layers) > 1:
        example = {name: list(layers) for name in num_teacher_layers}
        raise ValueError(
            f"layers={list(layers)} names no stack, but the teacher has several: give indices by stack, such as "
            f"layers={example}."
        )

    requests = {}
    for name, whole in num_teacher_layers.items():
        number = num_layers.get(name) if isinstance(num_layers, Mapping) else num_layers
        which = layers.get(name) if isinstance(layers, Mapping) else layers
        if by_name and not any(name in value for value in by_name.values()):
            number, which = whole, None
        requests[name] = (number, "alternate" if which is None else which)
    return requests


def check_num_layers(num_teacher_layers: int, num_layers: int | None) -> int:
    """Returns the student's number of layers: by default half of the teacher's, rounded down, at least 1.

    Raises:
        ValueError: if `num_layers` is not an integer from 1 to `num_teacher_layers`.
    """
    if num_layers is None:
        return max(1, num_teacher_layers // 2)
    if not _is_int(num_layers) or not 1 <= num_layers <= num_teacher_layers:
        raise ValueError(
            f"num_layers={num_layers!r}, but the teacher has {num_teacher_layers} layers: "
            f"use an integer from 1 to {num_teacher_layers}."
        )
    return num_layers


def select_layers(num_teacher_layers: int, num_layers: int | None = None, layers: Layers | None = None) -> list[int]:
    """Returns the indices of the teacher's layers that the student keeps, in increasing order.

    Args:
        num_teacher_layers: number of layers in the teacher's stack.
        num_layers: number of layers in the student. Default: half of the teacher's, rounded down, at least 1.
        layers: a strategy, `"alternate"` (the default), `"spread"`, `"first"` or `"last"`, or the indices.

    Raises:
        ValueError: if `num_layers` is not between 1 and `num_teacher_layers`, if the strategy is unknown, if an index
            is repeated, out of range or out of order, or if `num_layers` contradicts explicit indices.

    Example:
        >>> select_layers(12)
        [0, 2, 4, 6, 8, 10]
        >>> select_layers(12, num_layers=3, layers="spread")
        [0, 6, 11]
    """
    if layers is not None and not isinstance(layers, str):
        return _checked_indices(list(layers), num_teacher_layers, num_layers)

    strategy = "alternate" if layers is None else layers
    if strategy not in STRATEGIES:
        raise ValueError(
            f"layers={strategy!r} is not a known strategy: use one of "
            f"{', '.join(map(repr, [*STRATEGIES, *ON_DATA]))}, or a list of indices such as [0, 2, 4]."
        )
    return STRATEGIES[strategy](num_teacher_layers, check_num_layers(num_teacher_layers, num_layers))


def _checked_indices(indices: list[int], num_teacher_layers: int, num_layers: int | None) -> list[int]:
    would_work = f"use different indices from 0 to {num_teacher_layers - 1}, in increasing order."
    if not indices:
        raise ValueError(f"layers=[] keeps no layers of the teacher: {would_work}")
    if bad := [i for i in indices if not _is_int(i) or not 0 <= i < num_teacher_layers]:
        raise ValueError(
            f"layers={indices}: {bad} out of range, the teacher has {num_teacher_layers} layers: {would_work}"
        )
    if any(following <= index for index, following in pairwise(indices)):
        raise ValueError(f"layers={indices}: an index is repeated or out of order: {would_work}")
    if num_layers is not None and num_layers != len(indices):
        raise ValueError(f"num_layers={num_layers}, but layers={indices} has {len(indices)}: give only one of the two.")
    return indices


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
