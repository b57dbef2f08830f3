"""Rows with all documents of a query, and their batches."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill import DataCollatorForRankings, encode_rankings, load_rankings
from tests.data.pair_tokenizer import make_pair_tokenizer

TOKENIZER = make_pair_tokenizer()


def make_pairs():
    """Two queries with three documents and one."""
    return Dataset.from_dict(
        {
            "text": ["w5", "w5", "w5", "w6"],
            "text_pair": ["w10", "w11 w12", "w13", "w14"],
            "group": [4, 4, 4, 2],
            "labels": [1.0, 0.0, float("nan"), 1.0],
        }
    )


def test_encode_rankings():
    rows = encode_rankings(make_pairs(), TOKENIZER, max_length=30)
    assert rows["input_ids"][:] == [[[1, 5, 2, 10, 2], [1, 5, 2, 11, 12, 2], [1, 5, 2, 13, 2]], [[1, 6, 2, 14, 2]]]
    assert rows["token_type_ids"][1] == [[0, 0, 0, 1, 1]]
    assert rows["attention_mask"][1] == [[1] * 5]
    assert rows["labels"][0][:2] == [1.0, 0.0]
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    short = encode_rankings(make_pairs(), TOKENIZER, max_length=5)
    assert {len(ids) for row in short["input_ids"] for ids in row} == {5}


def test_many_queries(tmp_path):
    """More than fit into one batch of the grouping, without labels."""
    rows = [
        f'{{"query": "w{5 + n % 50} w{5 + n // 50}", "positive": "w7", "negative": ["w8", "w9"]}}' for n in range(250)
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(rows))
    pairs = load_rankings(tmp_path / "queries.jsonl")
    encoded = encode_rankings(pairs.remove_columns("labels"), TOKENIZER, max_length=30)
    assert len(encoded) == 250
    assert encoded[249]["input_ids"] == [[1, 54, 9, 2, document, 2] for document in (7, 8, 9)]
    assert "labels" not in encoded.column_names


def test_other_columns():
    """Lists are joined, and of other values the first is kept, such as a teacher's targets for the pairs."""
    source = ClassLabel(names=["the teacher"])
    targets = Dataset.from_dict(
        {"teacher_logits": [[0.5], [1.5], [2.5], [3.5]], "teacher_source": [0] * 4},
        features=Features({"teacher_logits": List(Value("float32")), "teacher_source": source}),
    )
    pairs = make_pairs()
    for name in targets.column_names:
        pairs = pairs.add_column(name, targets[name][:], feature=targets.features[name])
    rows = encode_rankings(pairs, TOKENIZER, max_length=30)
    assert rows["teacher_logits"][:] == [[0.5, 1.5, 2.5], [3.5]]
    assert rows.features["teacher_logits"] == List(Value("float32"))
    assert rows.features["teacher_source"] == source


def test_documents_of_a_query_that_do_not_follow_each_other():
    with pytest.raises(ValueError, match="do not follow each other: sort the rows by group"):
        encode_rankings(make_pairs().select([0, 3, 1]), TOKENIZER, max_length=30)


def test_collator():
    rows = list(encode_rankings(make_pairs(), TOKENIZER, max_length=30))
    batch = DataCollatorForRankings(TOKENIZER)(rows)
    assert {name: list(values.shape) for name, values in batch.items()} == {
        **{name: [2, 3, 6] for name in ("input_ids", "token_type_ids", "attention_mask")},
        "labels": [2, 3],
    }
    assert batch["input_ids"][0].tolist() == [[1, 5, 2, 10, 2, 0], [1, 5, 2, 11, 12, 2], [1, 5, 2, 13, 2, 0]]
    assert batch["attention_mask"].sum(2).tolist() == [[5, 6, 5], [5, 0, 0]]
    assert batch["labels"][1].tolist() == [1.0, -100.0, -100.0]
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"][0, 2].isnan()
    longer = DataCollatorForRankings(TOKENIZER, pad_to_multiple_of=8)(rows)
    assert longer["input_ids"].shape == (2, 3, 8)


def test_rows_with_one_input_each():
    rows = [{"input_ids": [1, 5, 2], "labels": [1.0]}, {"input_ids": [1, 2], "labels": [0.0]}]
    batch = DataCollatorForRankings(TOKENIZER)(rows)
    assert batch["input_ids"].tolist() == [[1, 5, 2], [1, 2, 0]]
    assert batch["labels"].tolist() == [[1.0], [0.0]]


def test_bad_rows():
    row = {"input_ids": [[1, 5, 2], [1, 2]], "labels": [1.0, 0.0]}
    with pytest.raises(ValueError, match=r"A row has 2 candidates, but the labels \[1.0\]: give each candidate one"):
        DataCollatorForRankings(TOKENIZER)([row, {**row, "labels": [1.0]}])
    with pytest.raises(ValueError, match="A row has no candidate: remove queries without documents"):
        DataCollatorForRankings(TOKENIZER)([row, {"input_ids": [], "labels": []}])
