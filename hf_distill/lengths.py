"""How many tokens a model takes, and which part of a text that has more."""

import math
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 10**9
"""A tokenizer that does not know the model's limit says something beyond."""

READING = "text_classification"
"""In the config of a classifier that `hf-distill train` trained: its text column, its label column, its truncation. How
many tokens it reads is in its tokenizer, as `model_max_length`."""

Truncation = Literal["head", "tail", "head_tail"]
"""Which part of a text that is too long a model reads: its beginning, its end, or some of both."""


def length_of_rows(max_length: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """`max_length`, or by default the most tokens that the tokenizer and the model take.

    Raises:
        ValueError: if the model has fewer positions, or if there is no default because neither says how many it takes.
    """
    positions = getattr(model.config, "max_position_embeddings", None)  # GPT-2's n_positions too
    limit = math.inf if positions is None else positions - first_position(model)
    if max_length is None:
        max_length = min(limit, tokenizer.model_max_length)
        if max_length > UNLIMITED:
            raise ValueError("Neither the tokenizer nor the model says how many tokens it takes: set max_length.")
    if max_length > limit:
        raise ValueError(f"max_length={max_length} is more than the {limit} tokens that the model takes.")
    return max_length


def truncation_of(config: PreTrainedConfig) -> Truncation:
    """Which part of long texts a model was trained on: `head`, `tail` or `head_tail`; `head` if it does not say."""
    return (getattr(config, READING, None) or {}).get("truncation", "head")


def first_position(model: PreTrainedModel) -> int:
    """Models whose positions have a padding index, as in RoBERTa, count from behind it."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0
