"""Chooses the layers to keep by block influence: how much a layer changes its hidden states."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_distill.progress import track
from hf_distill.student.architectures import LayerStack
from hf_distill.student.cutting import empty_student
from hf_distill.student.proof import evaluating, wrapping

logger = logging.getLogger(__name__)

IMAGES_AND_AUDIO = ("pixel_values", "input_features", "input_values")

Layers = dict[str, list[int]]


def most_influential(
    teacher: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, list[int]],
    num_layers: Mapping[str, int],
    batches: Sequence[Mapping[str, torch.Tensor]],
) -> Layers:
    """Chooses the layers with the highest influence. Layers that cannot be left out, such as ModernBERT's first, stay.

    Args:
        teacher: the model to cut.
        stacks: its stacks, by name.
        kept: layer indices of the stacks that are already decided.
        num_layers: number of layers to keep of each stack that is decided here.
        batches: the teacher's inputs.

    Returns:
        `kept`, and the kept layer indices of these stacks.

    Raises:
        ValueError: if no choice of layers is possible, or as in `block_influence`.
    """
    influence = block_influence(teacher, {name: stacks[name] for name in num_layers}, batches)
    whole = {name: list(kept.get(name, range(stack.num_layers))) for name, stack in stacks.items()}
    for name, number in num_layers.items():
        while len(whole[name]) > number:
            whole = _without_the_least(teacher, stacks, whole, name, influence[name])
        rounded = [round(value, 4) for value in influence[name]]
        logger.info("Kept layers %s: influence of %s %s", whole[name], name, rounded)
    return {**kept, **{name: whole[name] for name in num_layers}}


def block_influence(
    teacher: PreTrainedModel, stacks: Mapping[str, LayerStack], batches: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, list[float]]:
    """The influence of each layer: 1 - cosine of the hidden states before and after it, averaged over positions.

    Padding does not count: the attention mask selects the positions of an encoder or a decoder-only model, the decoder
    attention mask those of a decoder. Of images and audio, all positions count that the model attends to. The teacher
    is run once per batch.

    Reference: Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    https://arxiv.org/abs/2403.03853

    Args:
        teacher: the model.
        stacks: the stacks to measure, by name.
        batches: the teacher's inputs.

    Returns:
        One number per layer, by stack. 0: the layer does not change the direction of any hidden state.

    Raises:
        ValueError: if a layer is not run, or if hidden states are not finite.
    """
    sums = {name: [0.0] * stack.num_layers for name, stack in stacks.items()}
    counts = {name: [0] * stack.num_layers for name, stack in stacks.items()}
    place = {
        layer: (name, index)
        for name, stack in stacks.items()
        for index, layer in enumerate(teacher.get_submodule(stack.path))
    }
    batch: Mapping[str, torch.Tensor] = {}

    def compare(layer: nn.Module, before: torch.Tensor, output: object) -> object:
        name, index = place[layer]
        after = _hidden_states(output)
        attended = _attended(teacher, stacks[name], batch, before)
        changes = 1 - F.cosine_similarity(_selected(before, attended), _selected(after, attended), dim=-1)
        sums[name][index] += changes.sum(dtype=torch.float32).item()
        counts[name][index] += len(changes)
        return output

    with evaluating(teacher), wrapping(list(place), compare):
        for batch in track(batches, "Measuring layers", unit="batches", only_if_long=True):
            teacher(**batch)
    for name in stacks:
        if not all(counts[name]):
            raise ValueError(
                f"calibration_data does not pass through layer {counts[name].index(0)} of the stack {name!r}, so its "
                f"influence cannot be measured: pass batches that use this stack, or choose its layers in another way."
            )
        if not all(map(math.isfinite, sums[name])):
            raise ValueError(
                f"{type(teacher).__name__} has NaN or infinite hidden states on calibration_data, so layers cannot be "
                f"compared: load the teacher in float32 or bfloat16, and check its outputs."
            )
    return {name: [total / count for total, count in zip(sums[name], counts[name], strict=True)] for name in stacks}


def _without_the_least(
    teacher: PreTrainedModel, stacks: Mapping[str, LayerStack], kept: Layers, name: str, influence: Sequence[float]
) -> Layers:
    """`kept` without the layer of lowest influence that can be left out of the stack `name`."""
    misfit = None
    for index in sorted(kept[name], key=influence.__getitem__):
        fewer = {**kept, name: [other for other in kept[name] if other != index]}
        try:
            empty_student(teacher, stacks, fewer)
        except ValueError as error:
            misfit = misfit or error
        else:
            return fewer
    assert misfit is not None
    raise misfit


def _hidden_states(output: Any) -> torch.Tensor:
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    return output[0] if isinstance(output, tuple) else output


def _attended(
    teacher: PreTrainedModel, stack: LayerStack, batch: Mapping[str, torch.Tensor], states: torch.Tensor
) -> torch.Tensor | None:
    """The mask of the positions of a stack's hidden states, `[batch, length]`; None if there is no padding."""
    in_decoder = teacher.config.is_encoder_decoder and "decoder" in stack.path.split(".")
    prefix = "decoder_" if in_decoder else ""
    mask, tokens = batch.get(f"{prefix}attention_mask"), batch.get(f"{prefix}input_ids")
    if not in_decoder and any(name in batch for name in IMAGES_AND_AUDIO):
        if tokens is None and mask is not None and hasattr(teacher, "_get_feature_vector_attention_mask"):  # speech
            return teacher._get_feature_vector_attention_mask(states.shape[1], mask).bool()
        part = reduce(getattr, stack.config_path, teacher.config)
        if tokens is None or part is not teacher.config.get_text_config():
            return None
    if mask is None:
        return None if tokens is None else torch.ones_like(tokens, dtype=torch.bool).flatten(0, -2)
    if mask.ndim == 4:  # which token attends to which: an attended token attends to itself
        mask = mask[:, 0].diagonal(dim1=1, dim2=2)
        return mask if mask.dtype == torch.bool else mask.eq(0)
    if mask.ndim == 3 and tokens is not None and tokens.ndim == 2:
        mask = mask.diagonal(dim1=1, dim2=2)
    return mask.bool().flatten(0, -2)  # multiple choice has a row for each choice


def _selected(states: torch.Tensor, attended: torch.Tensor | None) -> torch.Tensor:
    """The hidden states of attended positions, `[positions, width]`, in fp32."""
    states = states.float()
    if attended is None:
        return states.flatten(0, -2)
    length = attended.shape[1]
    if states.shape[-2] != length and states.shape[-1] == length:  # SqueezeBERT's are [batch, width, length]
        states = states.transpose(-1, -2)
    if (missing := states.shape[-2] - length) > 0:  # Longformer pads to whole windows
        attended = F.pad(attended, (0, missing))
    if states.shape[-3:-1] != attended.shape:
        return states.flatten(0, -2)
    return states[..., attended, :].flatten(0, -2)
