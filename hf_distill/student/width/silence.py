"""The teacher with units silenced: it computes what a student without these units should compute."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.student.width.units import UnitClass, layout_of


@contextmanager
def silenced(
    teacher: PreTrainedModel, student: PreTrainedModel, classes: Sequence[UnitClass], kept: Sequence[Sequence[int]]
) -> Iterator[None]:
    """While open, no module of the teacher reads the removed units.

    A matrix reads zeros in their place. A normalisation takes its mean and variance over the kept units alone, as it
    does in the student.
    """
    with ExitStack() as stack:
        for own, units in zip(classes, kept, strict=True):
            for name, place in own.readers.items():
                rows = torch.tensor(sorted({row for unit in units for row in own.rows[place][unit]}))
                module = teacher.get_submodule(name)
                if layout_of(module) == (0, 0):
                    stack.enter_context(_over_kept_units(module, student.get_submodule(name), rows))
                else:
                    hook = module.register_forward_pre_hook(_reads_only(rows), with_kwargs=True)
                    stack.callback(hook.remove)
        yield


def _reads_only(rows: torch.Tensor):
    def before(module: nn.Module, args: tuple, kwargs: dict):
        def of_kept(read: torch.Tensor) -> torch.Tensor:
            dim = 1 if isinstance(module, CONVOLUTIONS) else -1
            mask = read.new_zeros(read.shape[dim])
            mask[rows.to(read.device)] = 1
            return read * (mask if dim == -1 else mask.reshape(-1, *[1] * (read.ndim - 2)))

        if args:
            return (of_kept(args[0]), *args[1:]), kwargs
        (key, read), *rest = kwargs.items()
        return args, {key: of_kept(read), **dict(rest)}

    return before


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@contextmanager
def _over_kept_units(norm: nn.Module, narrow: nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """While open, a normalisation computes on the kept units only, as the student's does. The others give 0."""
    own_forward = vars(norm).get("forward")

    def forward(read: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        kept = rows.to(read.device)
        dim = -1 if read.shape[-1] == cast(torch.Tensor, norm.weight).numel() else 1
        written = narrow(read.index_select(dim, kept), *args, **kwargs)
        return torch.zeros_like(read, dtype=written.dtype).index_copy(dim, kept, written)

    norm.forward = forward
    try:
        yield
    finally:
        del norm.forward
        if own_forward is not None:
            norm.forward = own_forward
