"""The modules after the transformer of an embedding model, for a narrower student."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.embedding import EmbeddingModel


def with_narrower_head(
    teacher: EmbeddingModel, transformer: PreTrainedModel, hidden_units: Sequence[int] | None
) -> EmbeddingModel:
    """The teacher with another transformer, whose hidden units are some of the teacher's.

    The first module with weights that reads the pooled vector keeps the weights of these units. It then computes what
    the teacher's computes if the others are 0.

    Args:
        teacher: the teacher. It does not change.
        transformer: the student's transformer.
        hidden_units: the teacher's hidden units that it has, in order; None for all.
    """
    if hidden_units is None:
        return teacher.with_transformer(transformer)
    head = copy.deepcopy(list(teacher.head))
    pooling: Any = head[0]
    old_width = pooling.embedding_dimension
    num_modes = 1 if isinstance(pooling.pooling_mode, str) else len(pooling.pooling_mode)
    kept = torch.tensor([mode * old_width + unit for mode in range(num_modes) for unit in hidden_units])
    head[0] = type(pooling)(len(hidden_units), pooling.pooling_mode)
    for index, module in enumerate(head):
        kind = type(module).__name__
        if kind == "LayerNorm":
            head[index] = _layer_norm(module, kept)
        if kind == "Dense":
            head[index] = _dense(module, kept)
            break
    return teacher.with_transformer(transformer, head)


def _dense(module: Any, kept: torch.Tensor) -> nn.Module:
    """A `Dense` that reads only some of its inputs.

    Raises:
        ValueError: if it adds its input to its output.
    """
    if module.use_residual:
        raise ValueError(
            "The Dense module adds its input to its output (use_residual), so hidden_size must stay as it is: give "
            "num_layers or intermediate_size instead."
        )
    smaller = type(module)(
        len(kept), module.out_features, module.bias, module.activation_function, module.linear.weight[:, kept].detach()
    )
    if module.bias:
        smaller.linear.bias = module.linear.bias
    return smaller


def _layer_norm(module: Any, kept: torch.Tensor) -> nn.Module:
    smaller = type(module)(len(kept))
    with torch.no_grad():
        smaller.norm.weight.copy_(module.norm.weight[kept])
        smaller.norm.bias.copy_(module.norm.bias[kept])
    return smaller
