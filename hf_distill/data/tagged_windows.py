"""Turns texts with tagged words into rows of tokens, with long texts in overlapping windows."""

from collections.abc import Sequence

from datasets import Dataset
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.overflow import check_overflow
from hf_distill.words import token_of_word

COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Attribute of an encoding by model input."""


def encode_tagged_words(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Dataset:
    """Tokenizes texts with tagged words.

    Each word's label is at its first token: the first one that covers its first character. All other tokens have the
    label -100. A text of more than `max_length` tokens becomes several rows.

    Args:
        dataset: dataset from `load_tagged_words`.
        tokenizer: a fast tokenizer.
        max_length: tokens per row, including special tokens.
        stride: tokens, without special tokens, that are in both of two neighbouring rows of a long text.

    Returns:
        A dataset with the model's inputs and `labels`, without padding. The windows of a text follow each other.

    Raises:
        ValueError: if the tokenizer is not a fast tokenizer, or if `stride` leaves no room for new tokens.

    Example:
        >>> train, names = load_tagged_words("train.conll")
        >>> rows = encode_tagged_words(train, tokenizer, max_length=256, stride=64)
    """
    check_stride(tokenizer, max_length, stride)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        columns: dict[str, list] = {name: [] for name in (*COLUMNS, "labels")}
        encoded = tokenize_in_windows(batch["text"], tokenizer, max_length, stride)
        for windows, starts, labels in zip(encoded, batch["starts"], batch["labels"], strict=True):
            for window in windows:
                for name, attribute in COLUMNS.items():
                    columns[name].append(getattr(window, attribute))
                columns["labels"].append(labels_of_tokens(window, starts, labels))
        return {name: own for name, own in columns.items() if name in (*tokenizer.model_input_names, "labels")}

    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenising")


def tokenize_in_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> list[list[Encoding]]:
    """Tokenizes each text in windows of at most `max_length` tokens, as a predictor does."""
    check_overflow()
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(max_length, stride=stride)
    return [[encoding, *encoding.overflowing] for encoding in backend.encode_batch(list(texts))]


def labels_of_tokens(window: Encoding, starts: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The label of each token. If words share a token, it has the label of the first one."""
    own = [IGNORE_INDEX] * len(window)
    for word, token in reversed(token_of_word(window, starts).items()):
        own[token] = labels[word]
    return own


def check_stride(tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> None:
    """Raises `ValueError` if the tokenizer is not a fast tokenizer, or if windows do not move on."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not say where its tokens are in the text: use "
            f"a fast tokenizer, which has a tokenizer.json."
        )
    num_special = tokenizer.num_special_tokens_to_add()
    room = max_length - num_special
    if room < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room for text: the tokenizer adds {num_special} special tokens, so use "
            f"at least {num_special + 1}."
        )
    if not 0 <= stride < room:
        raise ValueError(
            f"stride={stride} must be at least 0 and below the {room} tokens of text that max_length={max_length} "
            f"leaves, such as {max_length // 4}."
        )
