"""Texts, scored pairs and queries with documents, from files."""

import json

import pytest

from hf_distill import load_texts_to_embed


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_texts(tmp_path):
    (tmp_path / "texts.txt").write_text("one\n\n two \n")
    (tmp_path / "texts.csv").write_text("text,other\none,1\ntwo,2\n")
    for name in ("texts.txt", "texts.csv"):
        rows = load_texts_to_embed(tmp_path / name)
        assert rows["text"][:] == ["one", "two"]
        assert rows["role"][:] == ["text", "text"]
        assert rows["partners"][:] == rows["scores"][:] == [[], []]


def test_folder_of_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert load_texts_to_embed(tmp_path)["text"][:] == ["one"]


def test_scored_pairs(tmp_path):
    file = write(tmp_path / "sts.jsonl", [{"a": "w1", "b": "w2", "s": 0.5}, {"a": "w3", "b": "w2", "s": 4}])
    rows = load_texts_to_embed(file, None, "a", "b", "s")
    assert rows["text"][:] == ["w1", "w3", "w2", "w2"]
    assert rows["role"][:] == ["first", "first", "second", "second"]
    assert rows["partners"][:] == [[], [], [0], [1]]
    assert rows["scores"][:] == [[], [], [0.5], [4.0]]
    assert load_texts_to_embed(file, "texts", "a")["text"][:] == ["w1", "w3"]


def test_queries_with_relevant_documents(tmp_path):
    file = write(tmp_path / "q.jsonl", [{"query": "q1", "positive": ["d1", "d2"]}, {"query": "q2", "positive": ["d1"]}])
    rows = load_texts_to_embed(file)
    assert rows["text"][:] == ["q1", "q2", "d1", "d2"]
    assert rows["role"][:] == ["query", "query", "document", "document"]
    assert rows["partners"][:] == [[], [], [0, 1], [0]]
    assert rows["scores"][:] == [[], [], [1.0, 1.0], [1.0]]


def test_queries_with_scored_documents(tmp_path):
    file = write(tmp_path / "q.jsonl", [{"query": "q1", "documents": ["d1", "d2"], "scores": [0, 2]}])
    rows = load_texts_to_embed(file)
    assert rows["text"][:] == ["q1", "d1", "d2"]
    assert rows["partners"][:] == [[], [], [0]]
    assert rows["scores"][:] == [[], [], [2.0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "w1"}, {"text": " "}], "has empty texts in the column 'text', in row 2"),
        ([{"other": "w1"}], "has no column 'text', only 'other'"),
        ([{"query": "w1", "positive": []}], "row 1"),
        ([{"text": "w1", "text_pair": "w2", "score": "high"}], "row 1"),
    ],
)
def test_errors(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_texts_to_embed(write(tmp_path / "rows.jsonl", rows))


def test_unknown_kind(tmp_path):
    with pytest.raises(ValueError, match="kind='sts' must be one of 'texts', 'pairs', 'retrieval'"):
        load_texts_to_embed(tmp_path, "sts")
