"""Tokenizes texts, and truncates long texts at the tail, the head or in the middle."""

from typing import get_args

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.lengths import Truncation


def encode_texts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: Truncation = "head"
) -> Dataset:
    """Tokenizes texts and truncates each to `max_length` tokens, without padding.

    For a long text, `"head"` keeps the beginning, `"tail"` the end, and `"head_tail"` a quarter from the beginning and
    the rest from the end. For BERT's 510 tokens these are the first 128 and the last 382, which Sun et al., 2019, How
    to Fine-Tune BERT for Text Classification (https://arxiv.org/abs/1905.05583), found best on IMDb. The tokenizer's
    special tokens stay in place.

    Args:
        dataset: dataset with the column `text`. Other columns are kept.
        tokenizer: any tokenizer, with or without special tokens around a text.
        max_length: tokens per row, including special tokens.
        truncation: which part of a long text is kept.

    Returns:
        The dataset with the tokenizer's columns, such as `input_ids` and `attention_mask`, in place of `text`.

    Raises:
        ValueError: if `truncation` is unknown, or if `max_length` leaves no room for a token of the text.

    Example:
        >>> rows = encode_texts(Dataset.from_dict({"text": reviews, "labels": labels}), tokenizer, 512, "head_tail")
    """
    if truncation not in get_args(Truncation):
        raise ValueError(f"truncation={truncation!r} must be one of {', '.join(get_args(Truncation))}.")
    before, after = count_special_tokens(tokenizer)
    room = max_length - before - after
    if room < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room for text: the tokenizer adds {before + after} special tokens, so "
            f"use at least {before + after + 1}."
        )
    head = {"head": room, "tail": 0, "head_tail": (room + 2) // 4}[truncation]
    from_start, from_end = before + head, room - head + after

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        rows = tokenizer(batch["text"], verbose=False)
        return {name: [cut(values) for values in column] for name, column in rows.items()}

    def cut(values: list[int]) -> list[int]:
        if len(values) <= max_length:
            return values
        return values[:from_start] + values[len(values) - from_end :]

    return dataset.map(encode, batched=True, remove_columns="text", desc="Tokenising")


def count_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Number of special tokens that the tokenizer adds before a text, and after it."""
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    row = tokenizer("a")["input_ids"]
    for before in range(len(row) - len(inside) + 1):
        if row[before : before + len(inside)] == inside:
            return before, len(row) - len(inside) - before
    raise ValueError(f"{type(tokenizer).__name__} adds special tokens inside a text, not only before and after it.")
