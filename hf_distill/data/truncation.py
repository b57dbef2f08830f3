"""Which part of a text that is too long a model reads: its beginning, its end, or some of both."""

from typing import get_args

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.lengths import Truncation


def encode_texts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: Truncation = "head"
) -> Dataset:
    """Texts as rows of tokens, of at most `max_length` each and not padded.

    Of a text that is too long, `"head"` keeps the beginning, `"tail"` the end, and `"head_tail"` a quarter from the
    beginning and the rest from the end: of BERT's 510 tokens the first 128 and the last 382, which Sun et al., 2019,
    How to Fine-Tune BERT for Text Classification (https://arxiv.org/abs/1905.05583), found best on IMDb. The
    tokenizer's special tokens stay where they are.

    Args:
        dataset: has the column `text`; all others are kept.
        tokenizer: any, with special tokens around a text or without.
        max_length: tokens per row, the special ones included.
        truncation: which part is kept.

    Returns:
        The data set with the tokenizer's columns, such as `input_ids` and `attention_mask`, in place of `text`.

    Raises:
        ValueError: if there is no such truncation, or if `max_length` leaves no room for a token of the text.

    Example:
        >>> rows = encode_texts(Dataset.from_dict({"text": reviews, "labels": labels}), tokenizer, 512, "head_tail")
    """
    if truncation not in get_args(Truncation):
        raise ValueError(f"truncation={truncation!r} should be one of {', '.join(get_args(Truncation))}.")
    before, after = count_special_tokens(tokenizer)
    room = max_length - before - after
    if room < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room for a text: the tokenizer adds {before + after} tokens to each."
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
    """How many special tokens the tokenizer puts before a text, and how many after it."""
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    row = tokenizer("a")["input_ids"]
    for before in range(len(row) - len(inside) + 1):
        if row[before : before + len(inside)] == inside:
            return before, len(row) - len(inside) - before
    raise ValueError(f"{type(tokenizer).__name__} does not put its special tokens before and after a text.")
