"""What a model reads: the maximum length, which part of a longer text it keeps, and whether it reads pairs."""

import math
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 10**9
"""A tokenizer without a limit has a `model_max_length` above this number."""

READING = "task_options"
"""Config entry of a model from `hf-distill train`: the name of its task, and how it reads data, such as its columns.

The number of tokens it reads is in its tokenizer, as `model_max_length`.
"""

OF_CROSS_ENCODERS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Config entries of a CrossEncoder of sentence-transformers 4, and of earlier versions."""

Truncation = Literal["head", "tail", "head_tail"]
"""Which part of a long text is kept: its beginning, its end, or some of both."""


def length_of_rows(max_length: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Returns `max_length`, or by default the most tokens that both tokenizer and model accept.

    Raises:
        ValueError: if the model has fewer positions, or if there is no default because neither has a limit.
    """
    if max_length is None:
        max_length = min(most_tokens(model), tokenizer.model_max_length)
        if max_length > UNLIMITED:
            raise ValueError("Neither the tokenizer nor the model has a maximum length: set max_length.")
    check_length(max_length, model)
    return int(max_length)


def most_tokens(model: PreTrainedModel) -> float:
    """The number of tokens that a model accepts, infinite if it has no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)  # also finds GPT-2's n_positions
    return math.inf if positions is None else positions - first_position(model)


def check_length(max_length: float, model: PreTrainedModel) -> None:
    """Raises `ValueError` if a model accepts fewer tokens."""
    if max_length > (limit := most_tokens(model)):
        raise ValueError(f"max_length={max_length} exceeds the model's {limit} tokens: use {limit} or less.")


def truncation_of(config: PreTrainedConfig) -> Truncation:
    """Which part of long texts a model was trained on: `head`, `tail` or `head_tail`; `head` if not recorded."""
    return reading_of(config).get("truncation", "head")


def reading_of(config: PreTrainedConfig) -> dict[str, Any]:
    """How a model of `hf-distill train` read its training data; empty for other models."""
    return getattr(config, READING, None) or {}


def noted_stride(config: PreTrainedConfig, max_length: int) -> int:
    """The recorded number of tokens that neighbouring windows share, or the default."""
    stride = reading_of(config).get("stride")
    return default_stride(max_length) if stride is None else stride


def default_stride(max_length: int) -> int:
    """A quarter of a window."""
    return max_length // 4


def reads_pairs(config: PreTrainedConfig) -> bool:
    """True if a sequence classifier was trained on pairs of texts, as its config records.

    `hf-distill train` records it, and so does sentence-transformers, in the config of a CrossEncoder or, since version
    6, in a file of its own, which `load_student` reads.
    """
    return reading_of(config).get("reads_pairs", False) or any(hasattr(config, name) for name in OF_CROSS_ENCODERS)


def first_position(model: PreTrainedModel) -> int:
    """Position number of the first token: after the padding index if positions have one, as in RoBERTa, else 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0
