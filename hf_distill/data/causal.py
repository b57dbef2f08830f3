"""Collator for causal language modelling that also trains the end of a document."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.separate_documents import SeparateDocuments


@dataclass
class DataCollatorForCausalLM:
    """Pads the rows of `pack_documents` or `truncate_documents`, and labels every token except padding.

    Rows of `encode_chats` and `pack_chats` have labels of their own, which are kept.

    `transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)` removes the label of every token equal to the
    padding token. If padding and eos_token are the same token, as they often are, the student never learns to stop.

    Args:
        tokenizer: the tokenizer that made the rows.
        attention: `SeparateDocuments(student, teacher)` keeps the documents of a row apart. The first token of each
            document then has no label, because the document before it does not predict it. Default: a row is read as
            one text.
        pad_to_multiple_of: pads rows to a multiple of this number of tokens.

    Returns:
        `input_ids` and `labels` `[batch, length]`, with -100 where there is no label. Labels are not shifted: the loss
        shifts them. With `attention`, `position_ids` and masks, or one row `[1, tokens]` without padding, as
        `SeparateDocuments` says; without it, an `attention_mask` `[batch, length]`.

    Raises:
        ValueError: if the tokenizer has no padding token, or if the models of `attention` are not causal.

    Example:
        >>> rows = pack_documents(corpus, tokenizer, block_size=1024)
        >>> collator = DataCollatorForCausalLM(tokenizer, attention=SeparateDocuments(student, teacher))
    """

    tokenizer: PreTrainedTokenizerBase
    attention: SeparateDocuments | None = None
    pad_to_multiple_of: int | None = None

    def __post_init__(self):
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "The tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token. The end of each "
                "document still keeps its label."
            )
        if self.attention is not None and not self.attention.is_causal:
            raise ValueError(
                "The models of attention=SeparateDocuments(...) also attend to later tokens, so they could copy the "
                "token they must predict: use DataCollatorForMaskedLM."
            )

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        given = [row["labels"] for row in rows if "labels" in row]
        rows = [{name: value for name, value in row.items() if name != "labels"} for row in rows] if given else rows
        batch = dict(
            pad_without_fast_tokenizer_warning(
                self.tokenizer, rows, return_tensors="pt", pad_to_multiple_of=self.pad_to_multiple_of
            )
        )
        numbers = batch.pop("attention_mask")  # document numbers; 0 is padding
        labels = batch["input_ids"].masked_fill(numbers.eq(0), IGNORE_INDEX)
        if given:
            labels[numbers.ne(0)] = torch.tensor([label for own in given for label in own])
        if self.attention is None:
            return {**batch, "labels": labels, "attention_mask": numbers.ne(0).long()}
        begins = numbers.diff(dim=1, prepend=torch.zeros_like(numbers[:, :1])).ne(0)
        labels = labels.masked_fill(begins, IGNORE_INDEX)
        return self.attention({**batch, "labels": labels, "attention_mask": numbers})


def labels_no_end(collator: object) -> bool:
    """True for a causal collator of transformers that gives the end of a document no label."""
    if not isinstance(collator, DataCollatorForLanguageModeling) or collator.mlm:
        return False
    padding = collator.tokenizer.pad_token_id
    return padding is not None and padding == collator.tokenizer.eos_token_id
