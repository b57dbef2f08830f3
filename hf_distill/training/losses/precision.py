"""The precision that losses compute in."""

from collections.abc import Callable
from functools import wraps

import torch

from hf_distill.training.losses.base import Loss, ScoredItems, Signals

FEW_CLASSES = 16

Forward = Callable[..., torch.Tensor]


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32; unchanged if it is in fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def in_fp64_if_few(logits: torch.Tensor) -> torch.Tensor:
    """Logits in fp64 if there are few classes, where it costs nothing; else unchanged.

    A small divergence is a difference of larger numbers. Their rounding in fp32 would make it depend on how a step is
    split.
    """
    return logits.double() if logits.shape[-1] <= FEW_CLASSES and logits.device.type != "mps" else logits


def without_autocast(forward: Forward) -> Forward:
    """A `Loss.forward` whose matrix products keep the precision of their inputs, also in a bf16 training.

    Autocast would round the products. Rounded logits of a softmax change its gradient by several times as much as the
    rounded queries, keys and values that they are computed from.
    """

    @wraps(forward)
    def in_full_precision(loss: Loss, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        device = next(value.device for value in vars(student).values() if isinstance(value, torch.Tensor))
        with torch.autocast(device.type, enabled=False):
            return forward(loss, student, teacher, scored)

    return in_full_precision
