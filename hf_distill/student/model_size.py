"""How large a model is, from the shapes of its weights."""

from torch import nn

EMBEDDING_BYTES = 1 + 2 / 32
"""Bytes per value of an embedding in int8: one, and a scale of two bytes for 32 values."""


def operations_of(model: nn.Module) -> int:
    """Multiplications per token: one per weight of a matrix, including experts that are not selected.

    Embedding lookups, and attention apart from its projections, are not counted.
    """
    return sum(
        weight.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.ndim > 1
    )


def int8_bytes_of(model: nn.Module) -> float:
    """Bytes of the weights as `export_model` quantizes them: matrices and embeddings in int8, the rest in fp32.

    Shared weights count once.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(
        weight.numel() * (EMBEDDING_BYTES if id(weight) in embeddings else 1 if weight.ndim > 1 else 4)
        for weight in model.parameters()
    )
