"""Captures what losses read inside a model: the outputs of layers, and the queries, keys and values of attention."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.training.scoring.attention import AttentionInputs, attention_given_to

EMBEDDINGS = -1
"""The index of the embeddings, which are the input of the first layer."""

Layer = tuple[str, int]
"""Name of a stack, and the index of a layer in it."""


@dataclass(frozen=True)
class Wanted:
    """What to capture in a layer: its output, its queries, its keys, its values."""

    hidden_states: bool = False
    queries: bool = False
    keys: bool = False
    values: bool = False

    def __or__(self, other: "Wanted") -> "Wanted":
        return Wanted(**{name: value or getattr(other, name) for name, value in vars(self).items()})

    @property
    def attention(self) -> bool:
        return self.queries or self.keys or self.values


@dataclass(frozen=True)
class LayerOutput:
    """What was captured in a layer. What is not wanted is None.

    Attributes:
        hidden_states: `[batch, length, width]`, the output of the layer.
        queries: `[batch, heads, length, head width]`, as the attention function reads them, after rotary embeddings.
        keys: `[batch, key-value heads, length, head width]`.
        values: `[batch, key-value heads, length, head width]`.
        scaling: the factor of the products of queries and keys.
        position_bias: `[1 or batch, heads, length, length]`, which T5 adds to the products; None in most models.
        visible: `[1 or batch, 1, length, length]`, True where a query (row) attends to a key (column); None if every
            query attends to every key.
    """

    hidden_states: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    scaling: float = 1.0
    position_bias: torch.Tensor | None = None
    visible: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """The number of positions."""
        if self.hidden_states is not None:
            return self.hidden_states.shape[1]
        return next(tensor.shape[2] for tensor in (self.queries, self.keys, self.values) if tensor is not None)

    def to(self, device: torch.device) -> "LayerOutput":
        """The same on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)


class LayerCapture:
    """Captures layers during one forward of a model. Nothing else is kept.

    Queries, keys and values are those that the model's attention function receives, so the model keeps its own
    attention implementation: sdpa, flash attention or eager.

    Args:
        model: the model.
        paths: the path of each stack's `nn.ModuleList` in the model, by the stack's name.
        wanted: what to capture, by layer.
    """

    def __init__(self, model: PreTrainedModel, paths: Mapping[str, str], wanted: Mapping[Layer, Wanted]):
        self.model, self.wanted = model, dict(wanted)
        self.modules = {layer: _layers_at(model, paths[layer[0]])[max(layer[1], 0)] for layer in self.wanted}
        self.layer_of_module = {
            id(module): layer
            for layer, top in self.modules.items()
            if self.wanted[layer].attention
            for module in top.modules()
        }
        self._outputs: dict[Layer, LayerOutput] = {}
        self._hooks: list[Any] = []
        self._with_attention: set[Layer] = set()
        self._is_open = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, until `close` is called, the layers are captured."""
        self._outputs, self._with_attention, self._is_open = {}, set(), True
        for layer, module in self.modules.items():
            if self.wanted[layer].hidden_states and layer[1] == EMBEDDINGS:
                self._hooks.append(module.register_forward_pre_hook(partial(self._keep_input, layer), with_kwargs=True))
            elif self.wanted[layer].hidden_states:
                self._hooks.append(module.register_forward_hook(partial(self._keep_output, layer)))
        try:
            with attention_given_to(self._keep_attention) if self.layer_of_module else nullcontext():
                yield
        finally:
            self.close()

    def close(self) -> None:
        """Stops capturing, so layers that run again for gradient checkpointing are not captured a second time."""
        self._is_open = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def take(self) -> dict[Layer, LayerOutput]:
        """Stops capturing, and returns what was captured, by layer. It is not kept here.

        Raises:
            ValueError: if the forward did not give everything that is wanted.
        """
        self.close()
        outputs, self._outputs = self._outputs, {}
        for layer, wanted in self.wanted.items():
            output = outputs.get(layer, LayerOutput())
            for name, is_wanted in vars(wanted).items():
                if is_wanted and getattr(output, name) is None:
                    raise ValueError(
                        f"The forward of the {type(self.model).__name__} gave no {name.replace('_', ' ')} of layer "
                        f"{layer[1]} in its stack {layer[0]!r}: compare other layers with layer_map or "
                        f"relation_layer, or turn off the losses that read them."
                    )
        return outputs

    def _keep(self, layer: Layer, **captured: Any) -> None:
        if self._is_open:
            self._outputs[layer] = replace(self._outputs.get(layer, LayerOutput()), **captured)

    @torch.compiler.disable
    def _keep_input(self, layer: Layer, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._keep(layer, hidden_states=_as_sequence(args[0] if args else kwargs["hidden_states"]))

    @torch.compiler.disable
    def _keep_output(self, layer: Layer, module: nn.Module, args: tuple, output: Any) -> None:
        self._keep(layer, hidden_states=_as_sequence(output if isinstance(output, torch.Tensor) else output[0]))

    @torch.compiler.disable
    def _keep_attention(self, attention: AttentionInputs) -> None:
        layer = self.layer_of_module.get(id(attention.module))
        if layer is None or layer in self._with_attention:  # in a decoder, cross-attention follows self-attention
            return
        if attention.keys.shape[2] != attention.queries.shape[2]:  # other positions, such as compressed ones
            return
        self._with_attention.add(layer)
        wanted = self.wanted[layer]
        self._keep(
            layer,
            queries=attention.queries if wanted.queries else None,
            keys=attention.keys if wanted.keys else None,
            values=attention.values if wanted.values else None,
            scaling=attention.scaling,
            position_bias=attention.position_bias,
            visible=attention.visible(),
        )


def can_capture_attention(layer: nn.Module) -> bool:
    """Whether the attention of a layer goes through the attention functions of transformers."""
    classes = {cls for module in layer.modules() for cls in type(module).__mro__}
    return any(hasattr(sys.modules.get(cls.__module__), "ALL_ATTENTION_FUNCTIONS") for cls in classes)


def _layers_at(model: PreTrainedModel, path: str) -> nn.ModuleList:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)  # `find_layer_stacks` has found it
    return layers


def _as_sequence(hidden: torch.Tensor) -> torch.Tensor:
    """`[batch, length, width]`. Feature maps are flattened."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
