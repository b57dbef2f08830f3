"""Turns documents into rows of tokens, packed or one per row.

The `attention_mask` of a row numbers its documents 1, 2 and so on; 0 is padding. Any code that reads it as a mask sees
nonzero values as attended, and `SeparateDocuments` also sees which document a token belongs to.
"""

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.truncation import count_special_tokens

logger = logging.get_logger(__name__)


def pack_documents(
    corpus: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> Dataset | IterableDataset:
    """Packs documents one after the other into rows of `block_size` tokens.

    Each document gets the special tokens that the tokenizer adds. If the tokenizer adds none at the end, as with most
    causal models, the document ends with `tokenizer.eos_token`. A document that does not fit continues in the next
    row, so a row may start and end inside a document. No token is lost or repeated. Documents are packed in groups of
    one thousand, and only the last row of each group may be shorter.

    Args:
        corpus: dataset with the column `text`, as from `load_corpus`.
        tokenizer: the tokenizer of teacher and student.
        block_size: tokens per row.

    Returns:
        A map-style or streaming dataset, like the corpus, with `input_ids` and an `attention_mask` that numbers the
        documents of the row: 1 for the first, 2 for the second and so on.

    Raises:
        ValueError: if `block_size` is not positive, or exceeds the tokenizer's `model_max_length`.

    Reference:
        FULL-SENTENCES in Liu et al., 2019, RoBERTa, section 4.2, https://arxiv.org/abs/1907.11692

    Example:
        >>> rows = pack_documents(load_corpus("texts/*.txt"), tokenizer, block_size=512)
    """
    check_length("block_size", block_size, tokenizer)
    return corpus.select_columns("text").map(
        _pack,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tokenizer, "block_size": block_size, "end": end_of_document(tokenizer)},
    )


def truncate_documents(
    corpus: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset | IterableDataset:
    """Makes one row per document, truncated to `max_length` tokens.

    A document that is not truncated ends with the tokenizer's own special token, else with `tokenizer.eos_token`.

    Args:
        corpus: dataset with the column `text`, as from `load_corpus`.
        tokenizer: the tokenizer of teacher and student.
        max_length: tokens per row, including special tokens.

    Returns:
        A map-style or streaming dataset, like the corpus, with `input_ids`, `attention_mask` and `length`. With
        `train_sampling_strategy="group_by_length"`, `length` gives batches with little padding.

    Raises:
        ValueError: if `max_length` is not positive, or exceeds the tokenizer's `model_max_length`.

    Example:
        >>> rows = truncate_documents(load_corpus("texts/*.txt"), tokenizer, max_length=512)
    """
    check_length("max_length", max_length, tokenizer)
    return corpus.select_columns("text").map(
        _truncate,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "end": end_of_document(tokenizer)},
    )


def check_length(name: str, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ValueError` for a number of tokens that the tokenizer does not allow."""
    if not 0 < length <= tokenizer.model_max_length:
        raise ValueError(
            f"{name}={length} must be between 1 and {tokenizer.model_max_length}, the tokenizer's model_max_length."
        )


def end_of_document(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token to append to a document, or none if the tokenizer itself adds a special token at the end."""
    _, after = count_special_tokens(tokenizer)
    if after:
        return []
    if tokenizer.eos_token_id is None:
        logger.warning(
            f"{type(tokenizer).__name__} adds no special token at the end of a text and has no eos_token, so nothing "
            f"marks the end of a document: set tokenizer.eos_token."
        )
        return []
    return [tokenizer.eos_token_id]


def _pack(
    texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, block_size: int, end: list[int]
) -> dict[str, list]:
    ids_alone = {"return_attention_mask": False, "return_token_type_ids": False}
    documents = [ids + end for ids in tokenizer(texts["text"], verbose=False, **ids_alone)["input_ids"]]
    tokens = np.concatenate(documents)
    numbers = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    rows = [slice(start, start + block_size) for start in range(0, len(tokens), block_size)]
    return {
        "input_ids": [tokens[row].tolist() for row in rows],
        "attention_mask": [(numbers[row] - numbers[row.start] + 1).tolist() for row in rows],
    }


def _truncate(
    texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int, end: list[int]
) -> dict[str, list]:
    rows = tokenizer(texts["text"], truncation=True, max_length=max_length, return_token_type_ids=False)
    for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
        if len(ids) < max_length:  # otherwise the text is truncated, or there is no room for the end token
            ids += end
            mask += [1] * len(end)
    return {**rows, "length": [len(tokens) for tokens in rows["input_ids"]]}
