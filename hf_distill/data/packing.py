"""Turns documents into rows of tokens, packed or one per row, and keeps attention within a document.

The `attention_mask` of a row numbers its documents 1, 2 and so on; 0 is padding. Any code that reads it as a mask sees
nonzero values as attended, and `SeparateDocuments` also sees which document a token belongs to.
"""

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.truncation import count_special_tokens
from hf_distill.lengths import first_position

logger = logging.get_logger(__name__)

ATTENTION = ("sdpa", "eager")
"""Attention implementations of transformers that accept a mask `[batch, 1, length, length]`."""

TRIED_LENGTH = 512
"""Length in tokens of the test row that checks that documents do not attend to each other."""


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


class SeparateDocuments:
    """Keeps attention within each document of a packed row, and restarts positions at each document.

    A model then computes the same for a packed row as for each of its documents alone. The constructor checks this for
    every model on a row of up to 512 tokens, with bidirectional and with causal attention, and raises an error for a
    model whose documents would attend to each other.

    Args:
        *models: the models that will read the batches: student and teacher. No reference to them is kept.

    Attributes:
        is_causal: True if the models attend only to earlier tokens.

    Raises:
        ValueError: if attention cannot be kept within documents: the attention implementation of a model is not "sdpa"
            or "eager", its layers attend to a window of tokens (as in ModernBERT), it accepts no `position_ids`, or
            the models need different masks or positions.

    Example:
        >>> collator = DataCollatorForMaskedLM(tokenizer, attention=SeparateDocuments(student, teacher))
    """

    def __init__(self, *models: PreTrainedModel):
        names = {model.config._attn_implementation for model in models}
        if len(names) != 1 or not names <= set(ATTENTION):
            raise ValueError(
                f"The models use the attention implementation {' and '.join(sorted(map(str, names)))}. To keep "
                f"documents apart, load all models with "
                f"attn_implementation={' or all with '.join(map(repr, ATTENTION))}; or leave SeparateDocuments out, so "
                f"that a row is read as one text."
            )
        self.is_added = names == {"eager"}
        self.first_position = first_position(models[0])
        deviations = [self._deviations(model) for model in models]
        self.is_causal = max(causal for _, causal in deviations) < max(both_sides for both_sides, _ in deviations)
        for model, of_model in zip(models, deviations, strict=True):
            tolerance = torch.finfo(model.dtype).eps ** 0.5
            deviation, otherwise = of_model[self.is_causal], of_model[not self.is_causal]
            if deviation <= tolerance:
                continue
            if otherwise <= tolerance:
                classes = " and ".join(type(model).__name__ for model in models)
                raise ValueError(
                    f"{classes} need different masks, because one attends in both directions and the other only to "
                    f"earlier tokens: pack without SeparateDocuments."
                )
            raise ValueError(
                f"{type(model).__name__} computes different outputs for two documents in one row than for each alone "
                f"(relative deviation {deviation:.2g}), although attention stays within documents and positions "
                f"restart at {self.first_position}: pack without SeparateDocuments, or do not pack."
            )

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """Makes mask and positions from document numbers `[batch, length]`, where 0 is padding.

        Returns:
            `attention_mask`: `[batch, 1, length, length]`, True where one token attends to another; for eager
            attention, the values added to the scores. `position_ids`: `[batch, length]`.
        """
        return self._inputs(numbers, self.is_causal)

    def _inputs(self, numbers: torch.Tensor, is_causal: bool) -> dict[str, torch.Tensor]:
        attended = numbers.ne(0)
        # Padding attends to the last document, because a softmax over no tokens would be NaN.
        documents = numbers.where(attended, numbers.amax(1, keepdim=True))
        mask = (documents.unsqueeze(2) == documents.unsqueeze(1)) & attended.unsqueeze(1)
        if is_causal:
            mask = mask & (torch.ones_like(mask).tril() | ~attended.unsqueeze(2))
        if self.is_added:
            # bfloat16 values can be added to scores of float32 and of bfloat16.
            mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        places = torch.arange(numbers.shape[1]).expand_as(numbers)
        begins = numbers.diff(dim=1, prepend=torch.full_like(numbers[:, :1], -1)).ne(0)
        positions = places - places.where(begins, 0).cummax(1).values
        return {"attention_mask": mask.unsqueeze(1), "position_ids": positions + self.first_position}

    @torch.no_grad()
    def _deviations(self, model: PreTrainedModel) -> tuple[float, float]:
        """Relative deviation of two documents in one row from each alone, with bidirectional and causal attention."""
        config, was_training = model.config, model.training
        longest = (getattr(config, "max_position_embeddings", None) or TRIED_LENGTH) - self.first_position
        lengths = [min(TRIED_LENGTH, longest) // 4, min(TRIED_LENGTH, longest) * 3 // 4]
        tokens = 1 + torch.arange(sum(lengths)).remainder(config.vocab_size - 1)
        tokens = tokens.where(tokens != config.pad_token_id, 0).unsqueeze(0)
        numbers = torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor(lengths)).unsqueeze(0)
        model.eval()
        try:
            alone = torch.cat([_hidden_states(model, input_ids=part) for part in tokens.split(lengths, 1)], 1)
            both = [
                _hidden_states(model, input_ids=tokens, **self._inputs(numbers, causal)) for causal in (False, True)
            ]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{type(model).__name__} cannot read packed documents: {error}") from error
        finally:
            model.train(was_training)
        both_sides, causal = (((packed - alone).norm() / alone.norm()).item() for packed in both)
        return both_sides, causal


def _hidden_states(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    return model.base_model(**inputs)[0].float()
