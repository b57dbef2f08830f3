"""Scores units: those with the highest scores stay."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_distill.student.proof import evaluating
from hf_distill.student.width.units import UnitClass, layout_of

Batches = Iterable[Mapping[str, torch.Tensor]]
Scores = list[torch.Tensor]
"""`[units]` for each class."""


def by_magnitude(teacher: PreTrainedModel, classes: Sequence[UnitClass], batches: Batches | None = None) -> Scores:
    """The norm of the weights that write a unit, times the norm of the weights that read it. Needs no data.

    A unit that is never written, or never read, has the score 0.
    """
    weights = dict(teacher.named_parameters(remove_duplicate=False))
    scores = []
    for own in classes:
        reading = {place for name, place in own.readers.items() if layout_of(teacher.get_submodule(name)) != (0, 0)}
        of_norms = {place for name, place in own.readers.items() if place not in reading}
        writing = own.rows.keys() - reading - of_norms - {(f"{name}.bias", 0) for name in own.readers}
        score = torch.ones(own.num_units, dtype=torch.float64)
        for places in (reading, writing):
            squares = [_squares(weights[name], dim, own.rows[name, dim]) for name, dim in places if name in weights]
            if squares:
                score *= torch.stack(squares).sum(0).sqrt()
        scores.append(score)
    return scores


def by_activation(teacher: PreTrainedModel, classes: Sequence[UnitClass], batches: Batches) -> Scores:
    """What a unit adds to the modules that read it: the mean norm over the tokens of the calibration batches.

    For a unit with one value, this is its mean absolute activation times the norm of the weights that read it; for a
    head, the mean norm of its part of the attention's output. Padding does not count.

    Reference: Muralidharan et al., 2024, Compact Language Models via Pruning and Knowledge Distillation,
    https://arxiv.org/abs/2407.14679, for activations as importance.
    """
    return _over_batches(teacher, classes, batches, _norms_of_parts, needs_labels=False)


def by_taylor(teacher: PreTrainedModel, classes: Sequence[UnitClass], batches: Batches) -> Scores:
    """How much the loss changes without a unit, to first order: the mean over rows of |sum of activation x gradient|.

    The batches need labels, because the gradient is that of the model's own loss.

    Reference: Michel et al., 2019, Are Sixteen Heads Really Better than One?, https://arxiv.org/abs/1905.10650, and
    Molchanov et al., 2019, Importance Estimation for Neural Network Pruning, https://arxiv.org/abs/1906.10771
    """
    return _over_batches(teacher, classes, batches, _first_order, needs_labels=True)


WIDTHS: dict[str, Callable[[PreTrainedModel, Sequence[UnitClass], Batches], Scores]] = {
    "magnitude": by_magnitude,
    "activation": by_activation,
    "taylor": by_taylor,
}
WITHOUT_DATA, WITH_LABELS = "magnitude", "taylor"


def _squares(weight: torch.Tensor, dim: int, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """`[units]`: the sum of squares of the rows of each unit, relative to the mean of all units."""
    squares = weight.detach().double().square().movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1).cpu()
    of_units = squares[torch.tensor(rows)].sum(1)
    return of_units / of_units.mean().clamp(min=torch.finfo(torch.float64).tiny)


def _norms_of_parts(read: torch.Tensor, module: nn.Module, rows: Sequence[Sequence[int]], weights: torch.Tensor):
    """`[units]`: the sum over tokens of the norm of what each unit adds to the output of the module."""
    matrix = _reading_matrix(module)
    if all(len(own) == 1 for own in rows):
        order = torch.tensor([own[0] for own in rows], device=read.device)
        values = (read.detach().float().abs() * weights.unsqueeze(-1)).flatten(0, -2).sum(0)
        return values[order].double().cpu() * matrix.norm(dim=0)[order].double().cpu()
    sums = [
        (F.linear(read.detach().float()[..., list(own)], matrix[:, list(own)]).norm(dim=-1) * weights).sum()
        for own in rows
    ]
    return torch.stack(sums).double().cpu()


def _first_order(read: torch.Tensor, module: nn.Module, rows: Sequence[Sequence[int]], weights: torch.Tensor):
    """`[units]`: the sum over rows of |sum of activation x gradient|."""
    assert read.grad is not None  # it was retained
    changes = (read.detach() * read.grad).double()
    of_rows = changes.flatten(1, -2).sum(1) if changes.ndim > 2 else changes
    return torch.stack([of_rows[:, list(own)].sum(1).abs().sum() for own in rows]).cpu()


def _reading_matrix(module: nn.Module) -> torch.Tensor:
    """`[outputs, inputs]`."""
    weight = cast(torch.Tensor, module.weight).detach().float()
    return weight.T if isinstance(module, Conv1D) else weight.flatten(1)


def _over_batches(
    teacher: PreTrainedModel,
    classes: Sequence[UnitClass],
    batches: Batches,
    score: Callable[..., torch.Tensor],
    needs_labels: bool,
) -> Scores:
    readers = {
        name: (own, place)
        for own in classes
        for name, place in own.readers.items()
        if layout_of(teacher.get_submodule(name)) != (0, 0)
    }
    totals = {id(own): torch.zeros(own.num_units, dtype=torch.float64) for own in classes}
    gradients = _gradients(teacher) if needs_labels else nullcontext()
    with evaluating(teacher), gradients, kept_inputs(teacher, readers) as kept:
        for batch in batches:
            batch = inputs_of(teacher, batch, with_labels=needs_labels)
            output = teacher(**batch)
            if needs_labels:
                _differentiate(teacher, output)
            for name, reads in kept.items():
                own, place = readers[name]
                module = teacher.get_submodule(name)
                for read in reads:
                    weights = token_weights(read, batch)
                    totals[id(own)] += score(read, module, own.rows[place], weights)
                reads.clear()
    if not any(total.any() for total in totals.values()):
        raise ValueError("calibration_data has no batches, or nothing in them passes through what is cut: give others.")
    return [totals[id(own)] for own in classes]


def _differentiate(teacher: PreTrainedModel, output) -> None:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ValueError(
            f"width='taylor' needs the gradient of the loss of {type(teacher).__name__}, but it gives none: put labels "
            f"into calibration_data, or use width='activation'."
        )
    loss.backward()
    teacher.zero_grad(set_to_none=True)


@contextmanager
def _gradients(teacher: nn.Module) -> Iterator[None]:
    """While open, gradients are computed, also for a teacher that is frozen."""
    frozen = [parameter for parameter in teacher.parameters() if not parameter.requires_grad]
    try:
        with torch.enable_grad():
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def kept_inputs(teacher: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """While open, keeps what modules read, with its gradient if there is one."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = []
    for name in kept:

        def before(module, args, kwargs, name=name):
            read = args[0] if args else next(iter(kwargs.values()))
            if torch.is_grad_enabled() and read.requires_grad:
                read.retain_grad()
            kept[name].append(read)

        hooks.append(teacher.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def inputs_of(
    teacher: PreTrainedModel, batch: Mapping[str, torch.Tensor], with_labels: bool = False
) -> dict[str, torch.Tensor]:
    """A batch on the teacher's device, without labels unless its decoder inputs are made of them."""
    with_labels = with_labels or teacher.config.is_encoder_decoder
    return {name: own.to(teacher.device) for name, own in batch.items() if with_labels or name != "labels"}


def token_weights(read: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """1 for a token, 0 for padding, in the shape of what a module read without its last dimension."""
    shape = read.shape[:-1]
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = batch.get(name)
        if mask is not None and mask.ndim == 2 and mask.numel() == torch.Size(shape).numel():
            return mask.reshape(shape).float()
    return torch.ones(shape, device=read.device)
