"""Documents as rows of tokens, packed into full ones or each in its own; and attention that stays within a document.

A row's `attention_mask` numbers its documents: 1, 2 and so on, and 0 is padding. To whatever reads a mask it says what
is attended, and to `SeparateDocuments` by what.
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
"""The implementations of attention in transformers that read a mask `[batch, 1, length, length]`."""

TRIED_LENGTH = 512
"""Tokens of the row that proves that documents are apart."""


def pack_documents(
    corpus: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> Dataset | IterableDataset:
    """Rows of `block_size` tokens, filled with one document after the other.

    Every document has the special tokens around it that the tokenizer adds. Where it adds none at the end, as those of
    most causal models, the document ends with `tokenizer.eos_token`. What does not fit into a row goes on in the next,
    so that a row may begin and end within a document; no token is lost, and none is there twice. The documents are
    taken by the thousand, and only the last row of each thousand may be shorter.

    Args:
        corpus: with the column `text`, as from `load_corpus`.
        tokenizer: the one of teacher and student.
        block_size: tokens per row.

    Returns:
        Rows of the same kind, map-style or streaming: `input_ids` and an `attention_mask` that numbers the row's
        documents: 1 for the first, 2 for the second and so on.

    Raises:
        ValueError: if `block_size` is not positive, or more than the tokenizer's model takes.

    Reference:
        FULL-SENTENCES in Liu et al., 2019, RoBERTa, section 4.2, https://arxiv.org/abs/1907.11692

    Example:
        >>> rows = pack_documents(load_corpus("texts/*.txt"), tokenizer, block_size=512)
    """
    _check_length("block_size", block_size, tokenizer)
    return corpus.select_columns("text").map(
        _pack,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tokenizer, "block_size": block_size, "end": _end_of_document(tokenizer)},
    )


def truncate_documents(
    corpus: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset | IterableDataset:
    """A row for each document, of at most `max_length` tokens; what is beyond them is lost.

    A document that is not cut ends with a special token: that of the tokenizer, or `tokenizer.eos_token`.

    The `length` of each row is there for `train_sampling_strategy="group_by_length"`, which makes batches with little
    padding.

    Args:
        corpus: with the column `text`, as from `load_corpus`.
        tokenizer: the one of teacher and student.
        max_length: tokens per row, the special ones included.

    Raises:
        ValueError: if `max_length` is not positive, or more than the tokenizer's model takes.
    """
    _check_length("max_length", max_length, tokenizer)
    return corpus.select_columns("text").map(
        _truncate,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "end": _end_of_document(tokenizer)},
    )


def _check_length(name: str, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    if not 0 < length <= tokenizer.model_max_length:
        raise ValueError(f"{name}={length} should be from 1 to {tokenizer.model_max_length}, which the model takes.")


def _end_of_document(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that ends a document, or none if the tokenizer puts a special token there by itself."""
    _, after = count_special_tokens(tokenizer)
    if after:
        return []
    if tokenizer.eos_token_id is None:
        logger.warning(
            f"{type(tokenizer).__name__} adds no special token at the end of a text and has no eos_token, so nothing "
            f"says where a document ends: set tokenizer.eos_token."
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
        if len(ids) < max_length:  # otherwise it is cut, or there is no room
            ids += end
            mask += [1] * len(end)
    return {**rows, "length": [len(tokens) for tokens in rows["input_ids"]]}


class SeparateDocuments:
    """Attention within each document of a packed row, and positions that start anew in each.

    What a model makes of a packed row is then what it makes of each of the row's documents alone. That is tried out
    here, on each model and a row of up to 512 tokens, with attention to both sides and with causal attention: a model
    whose documents would see each other is refused.

    Args:
        *models: those that will read the batches: student and teacher. They are not kept.

    Attributes:
        is_causal: whether the models attend to earlier tokens only.

    Raises:
        ValueError: if a model's attention cannot be kept within documents: where its implementation is not "sdpa" or
            "eager", where its layers look at a window of tokens only (as in ModernBERT), or where it takes no
            `position_ids`; or if the models do not read the same mask and the same positions.

    Example:
        >>> collator = DataCollatorForMaskedLM(tokenizer, attention=SeparateDocuments(student, teacher))
    """

    def __init__(self, *models: PreTrainedModel):
        names = {model.config._attn_implementation for model in models}
        if len(names) != 1 or not names <= set(ATTENTION):
            raise ValueError(
                f"The models attend with {' and '.join(sorted(map(str, names)))}: documents in one row are kept apart "
                f"where all models were loaded with attn_implementation={' or all with '.join(map(repr, ATTENTION))}. "
                f"Without SeparateDocuments, a row is read as one text."
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
                    f"{classes} cannot read the same mask, as one attends to both sides and one to earlier tokens "
                    f"only: pack without SeparateDocuments."
                )
            raise ValueError(
                f"{type(model).__name__} makes something else of two documents in one row than of each alone "
                f"(deviation {deviation:.2g}), even with attention within documents and positions that start at "
                f"{self.first_position} in each: pack without SeparateDocuments, or do not pack."
            )

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the models read, out of `[batch, length]` numbers of documents, 0 for padding.

        Returns:
            `attention_mask`: `[batch, 1, length, length]`, True where one token attends to another; or, for eager
            attention, what is added to the scores. `position_ids`: `[batch, length]`.
        """
        return self._inputs(numbers, self.is_causal)

    def _inputs(self, numbers: torch.Tensor, is_causal: bool) -> dict[str, torch.Tensor]:
        attended = numbers.ne(0)
        # Padding attends to the last document: there is no softmax over nothing.
        documents = numbers.where(attended, numbers.amax(1, keepdim=True))
        mask = (documents.unsqueeze(2) == documents.unsqueeze(1)) & attended.unsqueeze(1)
        if is_causal:
            mask = mask & (torch.ones_like(mask).tril() | ~attended.unsqueeze(2))
        if self.is_added:
            # In bfloat16, which scores of either dtype can take.
            mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        places = torch.arange(numbers.shape[1]).expand_as(numbers)
        begins = numbers.diff(dim=1, prepend=torch.full_like(numbers[:, :1], -1)).ne(0)
        positions = places - places.where(begins, 0).cummax(1).values
        return {"attention_mask": mask.unsqueeze(1), "position_ids": positions + self.first_position}

    @torch.no_grad()
    def _deviations(self, model: PreTrainedModel) -> tuple[float, float]:
        """Two documents in one row against each alone, with attention to both sides and with causal attention."""
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
            raise ValueError(f"{type(model).__name__} does not read packed documents: {error}") from error
        finally:
            model.train(was_training)
        both_sides, causal = (((packed - alone).norm() / alone.norm()).item() for packed in both)
        return both_sides, causal


def _hidden_states(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    return model.base_model(**inputs)[0].float()
