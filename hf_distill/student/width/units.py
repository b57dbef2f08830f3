"""Finds which rows of which weights belong together: the units of a feed-forward layer, of heads, of hidden states.

A model of the same config runs once, cut at the input of each module whose input width changes. A gradient of one input
value then reaches only the weights between this module and the ones before it, and only their rows that the value is
made of:

- one row of each weight that writes hidden states, at the same index;
- two rows of a fused gate and up projection;
- for a value that attention gives, the row of the value, and all rows of the queries and keys of its head.

So heads, groups of heads that share keys, and the layout of fused projections are found without their names. The
weights are random, because trained ones may have units that do nothing, through which no gradient goes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_distill.student.architectures import skeleton
from hf_distill.student.axes import Places
from hf_distill.student.cutting import leave_out_what_is_missing

Place = tuple[str, int]
"""A weight by name, and one of its dimensions."""

Rows = tuple[int, ...]


@dataclass(eq=False)
class UnitClass:
    """Units that are kept or removed together in several weights.

    Attributes:
        num_units: how many there are.
        rows: for each place, the rows of each unit. Heads that share keys and values have rows in common.
        readers: the modules that read the units, by name, and the place that reads them.
        writers: for each of these modules, the places that write what it reads.
    """

    num_units: int
    rows: dict[Place, list[Rows]]
    readers: dict[str, Place] = field(default_factory=dict)
    writers: dict[str, set[Place]] = field(default_factory=dict)


@dataclass
class _Reader:
    """A module whose input has a changed width, and what it read in the forward."""

    name: str
    place: Place
    size: int
    inputs: list[torch.Tensor] = field(default_factory=list)

    def unit(self, read: torch.Tensor, unit: int) -> torch.Tensor:
        """One unit of an input, in its last dimension or, for convolutions, in the dimension after the batch."""
        return read.select(-1 if read.shape[-1] == self.size else 1, unit)

    def value(self, unit: int, generator: torch.Generator) -> torch.Tensor:
        """A random sum of one unit of what it read, over all positions."""
        total = torch.zeros((), device=self.inputs[0].device)
        for read in self.inputs:
            values = self.unit(read, unit).float()
            total = total + (values * torch.randn(values.shape, generator=generator).to(values.device)).sum()
        return total

    def alive(self) -> list[int]:
        """The units that are not 0 everywhere."""
        return [int(unit) for unit in torch.stack([self._is_alive(read) for read in self.inputs]).any(0).nonzero()]

    def _is_alive(self, read: torch.Tensor) -> torch.Tensor:
        channels = read.detach().movedim(-1 if read.shape[-1] == self.size else 1, 0)
        return channels.flatten(1).ne(0).any(1)


@dataclass(frozen=True)
class _Weight:
    """A weight with changed dimensions, and those of them that a module writes to.

    A bias is not looked at: its gradient may be 0, as that of the keys' is. It has the rows of its weight.
    """

    tensor: nn.Parameter
    written: Mapping[int, int]


def layout_of(module: nn.Module) -> tuple[int, int] | None:
    """The dimensions of a module's weight that read its input and write its output; None for other modules.

    Normalisations read and write the same one.
    """
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1):
        return 1, 0
    if isinstance(module, Conv1D):
        return 0, 1
    weight = getattr(module, "weight", None)
    return (0, 0) if isinstance(weight, torch.Tensor) and weight.ndim == 1 else None


def find_units(model: PreTrainedModel, places: Places, inputs: Mapping[str, torch.Tensor]) -> list[UnitClass]:
    """Finds the units of the changed places.

    Args:
        model: the model to cut. It does not change.
        places: the axes of weights that change, with their sizes.
        inputs: a small batch.

    Returns:
        The classes of units. Places that no module reads are in none of them. Tied weights have the first of their
        names.
    """
    model = _random_twin(model)
    names = canonical_names(model)
    layouts = {name: layout for name, module in model.named_modules() if (layout := layout_of(module)) is not None}
    weights: dict[str, _Weight] = {}
    followers: dict[Place, list[Place]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner, _, kind = name.rpartition(".")
        layout = layouts.get(owner)
        if name not in places:
            continue
        if layout is not None and kind == "bias":
            followers.setdefault((names[f"{owner}.weight"], layout[1]), []).append((names[name], 0))
            continue
        dims = places[name] if layout is None or kind != "weight" else {layout[1]: places[name].get(layout[1])}
        written = {dim: size for dim, size in dims.items() if size is not None}
        known = weights.get(names[name])
        weights[names[name]] = _Weight(tensor, {**(known.written if known else {}), **written})
    readers = [
        _Reader(name, (names[f"{name}.weight"], reading), places[f"{name}.weight"][reading])
        for name, (reading, _) in layouts.items()
        if reading in places.get(f"{name}.weight", ())
    ]
    with torch.enable_grad(), _reading(model, readers, inputs, weights):
        found = [_units_of(reader, weights) for reader in readers if reader.inputs]
    classes = _merged([own for own in found if own is not None])
    for own in classes:
        for place, rows in list(own.rows.items()):
            own.rows.update(dict.fromkeys(followers.get(place, ()), rows))
    return classes


def canonical_names(model: nn.Module) -> dict[str, str]:
    """For each name of a weight, the first name of the same weight."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(weight), name) for name, weight in model.named_parameters(remove_duplicate=False)}


def _random_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same config with random weights, in evaluation mode."""
    twin = skeleton(type(model), model.config, model.device, model.dtype)
    leave_out_what_is_missing(twin, model, [])
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    generator = torch.Generator().manual_seed(0)
    values: dict[tuple, torch.Tensor] = {}  # tied weights have the same values
    weights = {}
    for name, weight in model.state_dict().items():
        memory = (weight.data_ptr(), weight.shape, weight.stride())
        if memory not in values:
            own = torch.rand(weight.shape, generator=generator) + 0.5
            if weight.ndim > 1:
                own = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
            values[memory] = own.to(weight) if name in parameters else weight.clone()
        weights[name] = values[memory]
    twin.load_state_dict(weights, assign=True)
    twin.tie_weights()
    return twin


@contextmanager
def _reading(
    model: PreTrainedModel,
    readers: list[_Reader],
    inputs: Mapping[str, torch.Tensor],
    weights: Mapping[str, _Weight],
) -> Iterator[None]:
    """Runs the model with gradients, cut at the input of each reader, which keeps what it read."""
    hooks = []
    for reader in readers:

        def before(module, args, kwargs, reader=reader):
            if args:
                read, *rest = args
                reader.inputs.append(read)
                return (read.detach(), *rest), kwargs
            (key, read), *rest = kwargs.items()
            reader.inputs.append(read)
            return args, {key: read.detach(), **dict(rest)}

        module = model.get_submodule(reader.name)
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        for weight in weights.values():
            weight.tensor.requires_grad_(True)
        try:
            model(**inputs)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} does not run on {', '.join(inputs)}: {error}. Pass example_inputs=, a batch "
                f"of its inputs, so that its units can be found."
            ) from error
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _units_of(reader: _Reader, weights: Mapping[str, _Weight]) -> UnitClass | None:
    """The units that one module reads, with the rows of the weights that write them."""
    generator = torch.Generator().manual_seed(0)
    known: dict[int, dict[Place, set[int]]] = {}

    def written(unit: int) -> dict[Place, set[int]]:
        """The rows that one unit is made of: of each place, some rows but not all."""
        if unit not in known:
            known[unit] = _rows_with_gradient(reader, reader.value(unit, generator), weights)
        return known[unit]

    alive = reader.alive()
    if len(alive) < 3:
        return None
    first, second, last = alive[0], alive[1], alive[-1]
    common = {own: rows & written(second).get(own, set()) for own, rows in written(first).items()}
    common = {own: rows for own, rows in common.items() if rows}
    if common:
        return _heads(reader, written, common)
    rows: dict[Place, list[Rows]] = {reader.place: [(unit,) for unit in range(reader.size)]}
    for own in written(first):
        layout = _linear_layout([(unit, sorted(written(unit).get(own, ()))) for unit in (first, second, last)])
        if layout is not None:
            rows[own] = [
                tuple(sorted(start + stride * unit for start, stride in layout)) for unit in range(reader.size)
            ]
    return UnitClass(reader.size, rows, {reader.name: reader.place}, {reader.name: rows.keys() - {reader.place}})


def _rows_with_gradient(reader: _Reader, value: torch.Tensor, weights: Mapping[str, _Weight]) -> dict[Place, set[int]]:
    if not value.requires_grad:
        return {}
    tensors = [weight.tensor for weight in weights.values()]
    gradients = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=True)
    found = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None:
            continue
        for dim, size in weight.written.items():
            others = [other for other in range(gradient.ndim) if other != dim]
            has_gradient = gradient.ne(0).any(others) if others else gradient.ne(0)
            rows = set(has_gradient.nonzero().flatten().tolist())
            if 0 < len(rows) < size and (name, dim) != reader.place:
                found[name, dim] = rows
    return found


def _linear_layout(seen: list[tuple[int, list[int]]]) -> list[tuple[int, int]] | None:
    """Start and stride of each row as a linear function of the unit; None if the rows are no such function."""
    (first, rows), (second, others), (last, final) = seen
    if not rows or not len(rows) == len(others) == len(final):
        return None
    layout = []
    for row, other, at_end in zip(rows, others, final, strict=True):
        stride, rest = divmod(other - row, second - first)
        if rest or row + stride * (last - first) != at_end or stride == 0:
            return None
        layout.append((row - stride * first, stride))
    return layout


def _heads(
    reader: _Reader, written: Callable[[int], dict[Place, set[int]]], common: Mapping[Place, set[int]]
) -> UnitClass | None:
    """Units of several values each: all values of a unit are made of common rows, those of its queries and keys."""

    def is_of_the_first(unit: int) -> bool:
        return all(rows <= written(unit).get(own, set()) for own, rows in common.items())

    size = reader.size
    low, high = 1, size  # the first value of the second head lies in between
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_of_the_first(middle) else (low, middle)
    width = high
    if size % width or width == size:
        return None
    num_heads = size // width
    rows: dict[Place, list[Rows]] = {
        reader.place: [tuple(range(head * width, (head + 1) * width)) for head in range(num_heads)]
    }
    for own in written(0):
        of_heads = []
        for head in range(num_heads):
            start, following = (written(head * width + value).get(own, set()) for value in (0, 1))
            shared = start & following
            singles = list(zip(sorted(start - shared), sorted(following - shared), strict=False))
            of_values = {row + (other - row) * value for row, other in singles for value in range(width)}
            of_heads.append(tuple(sorted(shared | of_values)))
        if len({len(of_head) for of_head in of_heads}) == 1:
            rows[own] = of_heads
    return UnitClass(num_heads, rows, {reader.name: reader.place}, {reader.name: rows.keys() - {reader.place}})


def _merged(classes: list[UnitClass]) -> list[UnitClass]:
    """Joins classes that have a place in common."""
    merged: list[UnitClass] = []
    for own in classes:
        for other in [other for other in merged if own.rows.keys() & other.rows.keys()]:
            joined = _joined(own, other)
            if joined is not None:
                merged.remove(other)
                own = joined
        merged.append(own)
    return merged


def _joined(one: UnitClass, other: UnitClass) -> UnitClass | None:
    """One class of both. If one has several units for each unit of the other, its units are put together."""
    fine, coarse = (one, other) if one.num_units >= other.num_units else (other, one)
    (shared, *_) = fine.rows.keys() & coarse.rows.keys()
    if fine.num_units > coarse.num_units:
        unit_of_row = {row: unit for unit, rows in enumerate(fine.rows[shared]) for row in rows}
        parts = [sorted({unit_of_row[row] for row in rows if row in unit_of_row}) for rows in coarse.rows[shared]]
        rows = {
            place: [tuple(sorted(row for unit in part for row in of_units[unit])) for part in parts]
            for place, of_units in fine.rows.items()
        }
    else:
        rows = fine.rows
    if rows[shared] != coarse.rows[shared]:
        return None
    return UnitClass(
        coarse.num_units,
        {**rows, **coarse.rows},
        {**one.readers, **other.readers},
        {**one.writers, **other.writers},
    )
