"""Pairs of texts from every kind of file, their tokens, and errors for invalid ones."""

import json

import datasets
import pytest
from datasets import Dataset

from hf_distill import encode_pairs, load_labelled_pairs, load_unlabelled_pairs
from tests.data.pair_tokenizer import make_pair_tokenizer

COLUMNS = {"text_column": "question", "text_pair_column": "answer"}
ROWS = [
    {"question": "who?", "answer": "me, or\nyou", "fits": "yes"},
    {"question": "who?", "answer": "at noon", "fits": "no"},
    {"question": "when?", "answer": "at noon", "fits": "yes"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder, suffix, rows=ROWS):
    file = folder / f"data.{suffix}"
    if suffix == "csv":
        lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]))
    elif suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        Dataset.from_list(rows).to_parquet(file)
    return file


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_pairs_and_labels(tmp_path, suffix):
    file = write(tmp_path, suffix)
    rows, names = load_labelled_pairs(file, **COLUMNS, label_column="fits")
    assert names == ["no", "yes"]
    texts = {"text": ["who?", "who?", "when?"], "text_pair": ["me, or\nyou", "at noon", "at noon"]}
    assert rows.to_dict() == {**texts, "labels": [1, 0, 1]}
    rows, names = load_labelled_pairs(file, **COLUMNS, label_column="fits", label_names=["yes", "maybe", "no"])
    assert (names, rows["labels"][:]) == (["yes", "maybe", "no"], [0, 2, 0])
    assert load_unlabelled_pairs(file, **COLUMNS).to_dict() == {**texts, "labels": [-100] * 3}


def test_several_classes_and_numbers(tmp_path):
    file = write(tmp_path, "jsonl", [{**row, "kinds": ["a", "b"][:n], "score": 0.5 * n} for n, row in enumerate(ROWS)])
    options = {**COLUMNS, "problem_type": "multi_label_classification"}
    rows, names = load_labelled_pairs(file, label_column="kinds", **options)
    assert (names, rows["labels"][:]) == (["a", "b"], [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert load_unlabelled_pairs(file, **options, num_classes=2)["labels"][:] == [[-100.0, -100.0]] * 3
    rows, names = load_labelled_pairs(file, **COLUMNS, label_column="score", problem_type="regression")
    assert (names, rows["labels"][:]) == (["LABEL_0"], [0.0, 0.5, 1.0])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["question", "answer"])
def test_one_text_of_a_pair_is_missing(tmp_path, suffix, column):
    empty = "" if suffix == "csv" else None
    file = write(tmp_path, suffix, [ROWS[0], {**ROWS[1], column: empty}, {**ROWS[2], column: " "}])
    message = rf"data\.{suffix} has empty texts in the column '{column}', in 2 rows: 2, 3: remove these rows"
    with pytest.raises(ValueError, match=message):
        load_labelled_pairs(file, **COLUMNS, label_column="fits")
    with pytest.raises(ValueError, match=message):
        load_unlabelled_pairs(file, **COLUMNS)


def test_bad_columns(tmp_path):
    file = write(tmp_path, "jsonl")
    with pytest.raises(ValueError, match="has no column 'text' and no column 'text_pair' and no column 'label', only"):
        load_labelled_pairs(file)
    with pytest.raises(ValueError, match="The column 'question' is given for both texts of a pair: give two columns"):
        load_labelled_pairs(file, "question", "question", "fits")
    with pytest.raises(ValueError, match="has no column 'label'"):
        load_labelled_pairs(file, **COLUMNS)
    file = write(tmp_path, "parquet", [{**row, "fits": None} for row in ROWS])
    with pytest.raises(ValueError, match=r"data\.parquet, column 'fits' has no label in 3 rows: 1, 2, 3"):
        load_labelled_pairs(file, **COLUMNS, label_column="fits")


def test_the_longer_text_is_truncated_first():
    """Tokens are removed one by one from the end of the longer text, of the second if both are of the same length."""
    tokenizer = make_pair_tokenizer()
    texts = [("w5 w6 w7", " ".join(f"w{n}" for n in range(10, 30))), ("w5 " * 9, "w6 " * 9), ("w5", "w6 w7")]
    pairs = Dataset.from_dict({"text": [a for a, _ in texts], "text_pair": [b for _, b in texts], "labels": [0, 1, 0]})
    rows = encode_pairs(pairs, tokenizer, 12)
    assert set(rows.column_names) == {"labels", "input_ids", "token_type_ids", "attention_mask"}
    assert rows["labels"][:] == [0, 1, 0]
    short_question, both, whole = rows["input_ids"][:]
    assert short_question == [1, 5, 6, 7, 2, 10, 11, 12, 13, 14, 15, 2]
    assert sorted([both.count(5), both.count(6)]) == [4, 5]
    assert whole == [1, 5, 2, 6, 7, 2]
    assert rows["token_type_ids"][2] == [0, 0, 0, 1, 1, 1]


def test_no_room_for_both_texts():
    pairs = Dataset.from_dict({"text": ["w5"], "text_pair": ["w6"]})
    message = "max_length=4 leaves no room for both texts: the tokenizer adds 3 special tokens, so use at least 5"
    with pytest.raises(ValueError, match=message):
        encode_pairs(pairs, make_pair_tokenizer(), 4)
    assert encode_pairs(pairs, make_pair_tokenizer(), 5)["input_ids"][:] == [[1, 5, 2, 6, 2]]
