"""Copies of models, also after a training in mixed precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

OF_ACCELERATE = ("forward", "_original_forward")
"""What a training in mixed precision sets on a model: `forward` with autocast, and the one before it."""


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose `forward` computes in the model's own data type, and with the copy's own weights."""
    with without_autocast(model):
        return copy.deepcopy(model)


@contextmanager
def without_autocast(model: object) -> Iterator[None]:
    """Inside this context, the model computes in its own data type, also after a training in mixed precision."""
    own = vars(model)
    kept = {name: own.pop(name) for name in OF_ACCELERATE} if "_original_forward" in own else {}
    try:
        yield
    finally:
        own.update(kept)
