"""Dynamic masking for masked language modelling, uniform or biased towards rare tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollatorForLanguageModeling

from hf_distill.data.separate_documents import SeparateDocuments

RARITY_EXPONENT = 0.7
"""A token is masked with a weight of `count ** -RARITY_EXPONENT`, as in XLM and in DistilBERT's code."""


@dataclass
class DataCollatorForMaskedLM(DataCollatorForLanguageModeling):
    """Pads the rows of `pack_documents` or `truncate_documents` and masks tokens at random in every batch.

    15% of the tokens, not counting special tokens, get a label. Of these, 80% are replaced by the mask token, 10% by a
    random token, and 10% stay unchanged (Devlin et al., 2018, BERT, https://arxiv.org/abs/1810.04805).

    Args:
        tokenizer: the tokenizer that made the rows.
        mlm_probability: share of tokens that get a label. All other arguments of
            `transformers.DataCollatorForLanguageModeling` are accepted too.
        token_counts: `[vocabulary]`, how often each token occurs in the corpus, from `count_tokens`. Tokens are then
            chosen with a weight of `count ** -0.7`, and every batch has the same share of labels (Lample and Conneau,
            2019, XLM, https://arxiv.org/abs/1901.07291; the code of DistilBERT). Default: all tokens have the same
            probability.
        attention: `SeparateDocuments(student, teacher)` keeps the documents of a row apart. Default: a row is read as
            one text.

    Returns:
        `input_ids` and `labels` `[batch, length]`, with -100 where there is no label. With `attention`, `position_ids`
        and masks, or one row `[1, tokens]` without padding, as `SeparateDocuments` says; without it, an
        `attention_mask` `[batch, length]`, only if there is padding.

    Raises:
        ValueError: if the tokenizer has no mask token, if there are fewer counts than tokens in the vocabulary, if
            `mlm=False`, or if the models of `attention` are causal.

    Example:
        >>> rows = pack_documents(corpus, tokenizer, block_size=512)
        >>> collator = DataCollatorForMaskedLM(tokenizer, token_counts=count_tokens(rows, len(tokenizer)))
    """

    token_counts: Sequence[int] | torch.Tensor | None = None
    attention: SeparateDocuments | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.mlm:
            raise ValueError("mlm=False would mask nothing: use DataCollatorForCausalLM(tokenizer).")
        if self.attention is not None and self.attention.is_causal:
            raise ValueError(
                "The models of attention=SeparateDocuments(...) attend only to earlier tokens: use "
                "DataCollatorForCausalLM(tokenizer, attention=...)."
            )
        self._special_ids = torch.tensor(self.tokenizer.all_special_ids)
        if self.token_counts is None:
            return
        counts = torch.as_tensor(self.token_counts, dtype=torch.float64)
        if len(counts) < len(self.tokenizer):
            raise ValueError(
                f"token_counts has {len(counts)} entries, but the tokenizer has {len(self.tokenizer)} tokens: use "
                f"count_tokens(rows, len(tokenizer))."
            )
        self._weights = counts.clamp(min=1) ** -RARITY_EXPONENT
        # mypy does not see `mlm_probability`, a field of the transformers base class.
        self._mask_chosen = replace(self, token_counts=None, attention=None, mlm_probability=1.0)  # type: ignore[call-arg]

    def torch_call(self, examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = dict(super().torch_call(examples))
        numbers = batch.pop("attention_mask")
        if self.attention is not None:
            return self.attention(batch | {"attention_mask": numbers})
        # A mask of ones has no effect, but transformers would synchronise with the device to find that out.
        return batch if numbers.all() else batch | {"attention_mask": numbers.ne(0).long()}

    def torch_mask_tokens(
        self, inputs: torch.Tensor, special_tokens_mask=None, offset_mapping=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the masked tokens and the labels, both `[batch, length]`."""
        if special_tokens_mask is None:
            special_tokens_mask = torch.isin(inputs, self._special_ids)
        if self.token_counts is None:
            return super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
        chosen = self._choose(inputs, special_tokens_mask.bool())
        return self._mask_chosen.torch_mask_tokens(inputs, special_tokens_mask=~chosen)

    def _choose(self, inputs: torch.Tensor, special: torch.Tensor) -> torch.Tensor:
        """True for tokens that get a label: the same number as uniform masking, biased towards rare tokens."""
        weights = self._weights[inputs].masked_fill(special, 0.0).flatten()
        number = math.ceil(self.mlm_probability * weights.count_nonzero().item())
        chosen = torch.zeros_like(weights, dtype=torch.bool)
        if number:
            chosen[torch.multinomial(weights, number)] = True
        return chosen.view(inputs.shape)


def count_tokens(rows: Dataset | IterableDataset, vocab_size: int) -> torch.Tensor:
    """Counts how often each token occurs in the `input_ids` of all rows.

    Args:
        rows: rows of tokens, as from `pack_documents` or `truncate_documents`.
        vocab_size: number of counts, usually `len(tokenizer)`.

    Returns:
        `[vocab_size]`, int64.

    Raises:
        ValueError: if a token lies outside the vocabulary.

    Example:
        >>> counts = count_tokens(rows, len(tokenizer))
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in rows.with_format("numpy").iter(batch_size=1000):
        found = np.bincount(np.concatenate(list(batch["input_ids"])), minlength=vocab_size)
        if len(found) > vocab_size:
            raise ValueError(
                f"The rows contain token {len(found) - 1}, but vocab_size={vocab_size}: pass len(tokenizer), the "
                f"number of tokens."
            )
        counts += found
    return torch.from_numpy(counts)
