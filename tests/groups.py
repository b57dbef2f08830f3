"""Grouped rows: queries with several candidates, and a batch of them."""

import numpy as np

from hf_distill import DataCollatorForRankings
from tests.conftest import VOCAB_SIZE
from tests.data.pair_tokenizer import make_pair_tokenizer

collate_groups = DataCollatorForRankings(make_pair_tokenizer())


def make_groups(num_rows=8, seed=0, most=6):
    """Queries with 2 to `most` candidates of different length, of which one or two are relevant."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        count = int(generator.integers(2, most + 1))
        texts = [generator.integers(5, VOCAB_SIZE, generator.integers(3, 15)).tolist() for _ in range(count)]
        labels = [1.0] * min(count - 1, int(generator.integers(1, 3)))
        labels = generator.permutation(labels + [0.0] * (count - len(labels))).tolist()
        rows.append({"input_ids": texts, "attention_mask": [[1] * len(text) for text in texts], "labels": labels})
    return rows
