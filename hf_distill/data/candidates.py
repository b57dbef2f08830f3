"""Queries with all their documents in one row, for losses that compare the scores of a query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List
from datasets.fingerprint import Hasher
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.pairs import encode_pairs


def encode_rankings(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenizes queries with their documents, and puts all documents of a query into one row, without padding.

    `alpha_margin` and `alpha_listwise` read such rows. Batch them with `DataCollatorForRankings(tokenizer)`. The batch
    size is then the number of queries.

    Args:
        dataset: rows from `load_rankings` or `load_unlabelled_rankings`, or rows like them: one for each query and
            document, with the columns `text`, `text_pair`, `group` and, if they are labelled, `labels`. The documents
            of a query follow each other. Other columns are kept: lists are joined, and of other values the row has the
            first.
        tokenizer: any tokenizer that takes pairs.
        max_length: tokens per pair, including special tokens, as in `encode_pairs`.

    Returns:
        One row per query. The tokenizer's columns, such as `input_ids`, have a list for each document. `labels` is a
        list with a number for each document.

    Raises:
        ValueError: if the documents of a query do not follow each other, or if `max_length` leaves no room for a token
            of each text.

    Example:
        >>> rows = encode_rankings(load_rankings("queries.jsonl"), tokenizer, max_length=256)
        >>> rows[0]["labels"]
        [1.0, 0.0, 0.0]
    """
    groups = np.asarray(dataset["group"][:])
    begins = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1)) if len(groups) else np.zeros(0, dtype=np.int64)
    if len(set(groups[begins].tolist())) < len(begins):
        raise ValueError(
            "The documents of a query do not follow each other: sort the rows by group, for instance with "
            "dataset.sort('group')."
        )
    pairs = encode_pairs(dataset.remove_columns("group"), tokenizer, max_length)
    of_tokenizer = set(pairs.column_names) - set(dataset.column_names)
    features = Features(
        {
            name: List(feature) if name in of_tokenizer or name == "labels" else feature
            for name, feature in pairs.features.items()
        }
    )

    def in_groups(batch: Mapping[str, list[int]]) -> dict[str, list]:
        start = batch["begin"][0]
        own = pairs[start : batch["end"][-1]]
        spans = [slice(begin - start, end - start) for begin, end in zip(batch["begin"], batch["end"], strict=True)]
        return {
            name: [_joined(values[span], features[name], pairs.features[name]) for span in spans]
            for name, values in own.items()
        }

    index = Dataset.from_dict({"begin": begins, "end": [*begins[1:], len(groups)]})
    return index.map(
        in_groups,
        batched=True,
        batch_size=100,
        remove_columns=["begin", "end"],
        features=features,
        new_fingerprint=Hasher.hash(["candidates", pairs._fingerprint]),
        desc="Grouping by query",
    )


def _joined(values: list, feature: Any, of_pair: Any) -> Any:
    """The value of a query from those of its documents."""
    if feature != of_pair:
        return values
    return list(chain(*values)) if isinstance(feature, List) else values[0]


@dataclass
class DataCollatorForRankings(DataCollatorWithPadding):
    """Pads rows that have all candidates of a query, such as those of `encode_rankings`.

    Rows may have different numbers of candidates, of different length. Rows with a single input each are padded as
    `transformers.DataCollatorWithPadding` does.

    Args:
        tokenizer: the tokenizer that made the rows.
        padding: as in `DataCollatorWithPadding`.
        max_length: as in `DataCollatorWithPadding`.
        pad_to_multiple_of: pads to a multiple of this number of tokens.
        return_tensors: "pt".

    Returns:
        `input_ids`, `attention_mask` and so on, `[rows, candidates, length]`. The `attention_mask` of a candidate that
        a row does not have is 0. `labels`, if the rows have them, `[rows, candidates]`, -100 where there is no
        candidate.

    Raises:
        ValueError: if a row has no candidate, or not one label for each.

    Example:
        >>> batch = DataCollatorForRankings(tokenizer)([rows[0], rows[1]])
        >>> batch["input_ids"].shape, batch["labels"].shape
        (torch.Size([2, 4, 31]), torch.Size([2, 4]))
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = rows[0].get("input_ids")
        if tokens is None or (len(tokens) and np.ndim(tokens[0]) == 0):
            return dict(super().__call__(rows))
        counts = [len(row["input_ids"]) for row in rows]
        if not all(counts):
            raise ValueError("A row has no candidate: remove queries without documents.")
        own = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        pairs = [
            {name: row[name][i] for name in own} for row, count in zip(rows, counts, strict=True) for i in range(count)
        ]
        padded = super().__call__(pairs)
        if "attention_mask" not in padded:
            padded["attention_mask"] = torch.ones_like(padded["input_ids"])
        is_candidate = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
        batch = {}
        for name, values in padded.items():
            padding = self.tokenizer.pad_token_id if name == "input_ids" else 0
            batch[name] = values.new_full((*is_candidate.shape, values.shape[1]), padding)
            batch[name][is_candidate] = values
        if rows[0].get("labels") is not None:
            batch["labels"] = _labels(rows, counts, is_candidate)
        rest = rows[0].keys() - padded.keys() - {"labels"}
        return {**batch, **{name: torch.as_tensor(np.array([row[name] for row in rows])) for name in sorted(rest)}}


def _labels(rows: Sequence[Mapping[str, Any]], counts: Sequence[int], is_candidate: torch.Tensor) -> torch.Tensor:
    given = [np.asarray(row["labels"]) for row in rows]
    for labels, count in zip(given, counts, strict=True):
        if labels.shape[:1] != (count,):
            raise ValueError(
                f"A row has {count} candidates, but the labels {labels.tolist()}: give each candidate one."
            )
    values = torch.from_numpy(np.concatenate(given))
    values = values.float() if values.is_floating_point() else values.long()
    padded = values.new_full((*is_candidate.shape, *values.shape[1:]), IGNORE_INDEX)
    padded[is_candidate] = values
    return padded
