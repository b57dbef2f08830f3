"""Shows what the attention functions of transformers receive, without changing what they compute."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface


@dataclass(frozen=True)
class AttentionInputs:
    """What an attention function receives.

    Attributes:
        module: the module that calls the function.
        implementation: name of the function, such as "sdpa".
        queries: `[batch, heads, length, head width]`, after rotary embeddings.
        keys: `[batch, key-value heads, length, head width]`.
        values: `[batch, key-value heads, length, head width]`.
        mask: the attention mask. Its form depends on the implementation.
        options: all other arguments.
    """

    module: nn.Module
    implementation: str
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    mask: Any
    options: Mapping[str, Any]

    @property
    def scaling(self) -> float:
        """The factor of the products of queries and keys."""
        given = self.options.get("scaling")
        return self.queries.shape[-1] ** -0.5 if given is None else given

    @property
    def position_bias(self) -> torch.Tensor | None:
        """`[1 or batch, heads, length, length]`, added to the products, as in T5; None in most models."""
        return self.options.get("position_bias")

    def visible(self) -> torch.Tensor | None:
        """True where a query attends to a key, `[1 or batch, 1, length, length]`; None if each attends to all.

        Flash attention reads a mask of the padding only, which is not included here.

        Raises:
            ValueError: if it is unknown which keys are visible.
        """
        if isinstance(self.mask, torch.Tensor) and self.mask.ndim == 4:
            mask = self.mask[:, :1, :, : self.keys.shape[2]]
            return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if self.implementation == "flex_attention" or self.options.get("cu_seq_lens_q") is not None:
            raise ValueError(
                f"The attention implementation {self.implementation!r} does not show which positions of a packed batch "
                f"attend to each other: load the model with attn_implementation='sdpa', or turn off the losses that "
                f"read queries, keys or values."
            )
        if self.implementation == "eager":
            return None
        is_causal = self.options.get("is_causal")
        is_causal = getattr(self.module, "is_causal", True) if is_causal is None else is_causal
        positions = torch.arange(self.queries.shape[2], device=self.queries.device)
        distance = positions.unsqueeze(1) - positions.unsqueeze(0)
        window = self.options.get("sliding_window")
        if not is_causal and window is None:
            return None
        visible = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
        return (visible if window is None else visible & (distance.abs() < window))[None, None]


_receivers: list[Callable[[AttentionInputs], object]] = []
"""Who receives the inputs. Models pass no argument through to the attention function, so this is global."""


@contextmanager
def attention_given_to(receiver: Callable[[AttentionInputs], object]) -> Iterator[None]:
    """While open, `receiver` is called with the inputs of each attention function, before the function itself."""
    functions = AttentionInterface._global_mapping
    own = dict(functions)
    functions.update({name: _shown(name, own.get(name)) for name in (*own, "eager")})
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.remove(receiver)
        functions.clear()
        functions.update(own)


@cache
def _shown(name: str, function: Callable | None) -> Callable:
    """An attention function that shows its inputs first. `function` is None for eager attention."""

    def attention(module, query, key, value, attention_mask=None, *args, **options):
        for receiver in _receivers:
            receiver(AttentionInputs(module, name, query, key, value, attention_mask, options))
        own = _eager_function_of(module) if function is None else function
        return own(module, query, key, value, attention_mask, *args, **options)

    return attention


def _eager_function_of(module: nn.Module) -> Callable:
    """The function of eager attention, which each modeling file defines for itself."""
    files = (vars(sys.modules[cls.__module__]) for cls in type(module).__mro__ if cls.__module__ in sys.modules)
    return next(names["eager_attention_forward"] for names in files if "eager_attention_forward" in names)
