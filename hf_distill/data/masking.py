"""Dynamic masking for masked language modelling, evenly or with an emphasis on rare tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollatorForLanguageModeling

from hf_distill.data.packing import SeparateDocuments

RARITY_EXPONENT = 0.7
"""Of XLM and of DistilBERT's code: a token is masked in proportion to its count to the power of minus this."""


@dataclass
class DataCollatorForMaskedLM(DataCollatorForLanguageModeling):
    """Pads the rows of `pack_documents` or `truncate_documents` and masks tokens in them, anew in each batch.

    15% of the tokens that are not special have a label; of these, 80% become the mask token, 10% another token, and 10%
    stay as they are (Devlin et al., 2018, BERT, https://arxiv.org/abs/1810.04805).

    Args:
        tokenizer: the one that made the rows.
        mlm_probability: the share of tokens that have a label. The other arguments of
            `transformers.DataCollatorForLanguageModeling` are there too.
        token_counts: `[vocabulary]`, from `count_tokens`: how often each token is in the corpus. With it, a token is
            chosen in proportion to `count ** -0.7`, and of a batch, always the same share (Lample and Conneau, 2019,
            XLM, https://arxiv.org/abs/1901.07291; the code of DistilBERT). Without it, each with the same probability.
        attention: `SeparateDocuments(student, teacher)` keeps the documents of a row apart. Without it a row is read as
            one text.

    Returns:
        `input_ids` and `labels` `[batch, length]`, -100 where there is no label; with `attention`, an `attention_mask`
        `[batch, 1, length, length]` and `position_ids`; without it, an `attention_mask` `[batch, length]` if there is
        padding, and none if there is not.

    Raises:
        ValueError: if the tokenizer has no mask token, if the counts are not those of its vocabulary, with `mlm=False`,
            or if `attention` is that of causal models.

    Example:
        >>> rows = pack_documents(corpus, tokenizer, block_size=512)
        >>> collator = DataCollatorForMaskedLM(tokenizer, token_counts=count_tokens(rows, len(tokenizer)))
    """

    token_counts: Sequence[int] | torch.Tensor | None = None
    attention: SeparateDocuments | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.mlm:
            raise ValueError("mlm=False masks nothing: use DataCollatorForCausalLM(tokenizer).")
        if self.attention is not None and self.attention.is_causal:
            raise ValueError(
                "The models of attention=SeparateDocuments(...) attend to earlier tokens only: use "
                "DataCollatorForCausalLM(tokenizer, attention=...)."
            )
        self._special_ids = torch.tensor(self.tokenizer.all_special_ids)
        if self.token_counts is None:
            return
        counts = torch.as_tensor(self.token_counts, dtype=torch.float64)
        if len(counts) < len(self.tokenizer):
            raise ValueError(
                f"There are {len(counts)} token_counts for the {len(self.tokenizer)} tokens of the tokenizer: count "
                f"with count_tokens(rows, len(tokenizer))."
            )
        self._weights = counts.clamp(min=1) ** -RARITY_EXPONENT
        # `mlm_probability` is a field of the class above, whose types are not read.
        self._mask_chosen = replace(self, token_counts=None, attention=None, mlm_probability=1.0)  # type: ignore[call-arg]

    def torch_call(self, examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = dict(super().torch_call(examples))
        numbers = batch.pop("attention_mask")
        if self.attention is not None:
            return batch | self.attention(numbers)
        # A mask of ones changes nothing, and transformers waits for the device to see that it is one.
        return batch if numbers.all() else batch | {"attention_mask": numbers.ne(0).long()}

    def torch_mask_tokens(
        self, inputs: torch.Tensor, special_tokens_mask=None, offset_mapping=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, length]` twice: the tokens with masks, and the labels."""
        if special_tokens_mask is None:
            special_tokens_mask = torch.isin(inputs, self._special_ids)
        if self.token_counts is None:
            return super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
        chosen = self._choose(inputs, special_tokens_mask.bool())
        return self._mask_chosen.torch_mask_tokens(inputs, special_tokens_mask=~chosen)

    def _choose(self, inputs: torch.Tensor, special: torch.Tensor) -> torch.Tensor:
        """True for those that get a label: as many as in even masking, the rarer the rather."""
        weights = self._weights[inputs].masked_fill(special, 0.0).flatten()
        number = math.ceil(self.mlm_probability * weights.count_nonzero().item())
        chosen = torch.zeros_like(weights, dtype=torch.bool)
        if number:
            chosen[torch.multinomial(weights, number)] = True
        return chosen.view(inputs.shape)


def count_tokens(rows: Dataset | IterableDataset, vocab_size: int) -> torch.Tensor:
    """`[vocab_size]`: how often each token is in the `input_ids` of all rows.

    Raises:
        ValueError: if there is a token beyond the vocabulary.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in rows.with_format("numpy").iter(batch_size=1000):
        found = np.bincount(np.concatenate(list(batch["input_ids"])), minlength=vocab_size)
        if len(found) > vocab_size:
            raise ValueError(
                f"There is a token {len(found) - 1} in the rows: vocab_size={vocab_size} is too small, "
                "pass len(tokenizer)."
            )
        counts += found
    return torch.from_numpy(counts)
