"""Queries with their documents from every kind of file, and errors for invalid ones."""

import json
import math

import datasets
import pytest
from datasets import Dataset

from hf_distill import load_rankings, load_unlabelled_rankings, retrieval_metrics, retrieval_of_rankings

TRIPLES = [
    {"query": "q", "positive": ["a"], "negative": ["b", "c"]},
    {"query": "r", "positive": ["d", "e"], "negative": ["a"]},
]
EXPECTED = {
    "text": ["q", "q", "q", "r", "r", "r"],
    "text_pair": ["a", "b", "c", "d", "e", "a"],
    "group": [0, 0, 0, 1, 1, 1],
    "labels": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
}
SCORED = {"documents_column": "documents", "scores_column": "scores"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder, rows, suffix="jsonl"):
    file = folder / f"data.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "json":
        file.write_text(json.dumps(rows))
    elif suffix == "csv":
        file.write_text("\n".join(",".join(map(str, row)) for row in [rows[0], *map(dict.values, rows)]))
    else:
        Dataset.from_list(rows).to_parquet(file)
    return file


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_positives_and_negatives(tmp_path, suffix):
    file = write(tmp_path, TRIPLES, suffix)
    assert load_rankings(file).to_dict() == EXPECTED
    unlabelled = load_unlabelled_rankings(file)
    assert all(map(math.isnan, unlabelled["labels"]))
    assert unlabelled.remove_columns("labels").to_dict() == {n: EXPECTED[n] for n in ("text", "text_pair", "group")}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_one_triple_per_row(tmp_path, suffix):
    """Rows with the same query form a group, in which each document is once."""
    triples = [("q", "a", "b"), ("q", "a", "c"), ("r", "d", "a"), ("r", "e", "a")]
    rows = [dict(zip(("query", "positive", "negative"), triple, strict=True)) for triple in triples]
    loaded = load_rankings(write(tmp_path, rows, suffix)).to_dict()
    assert loaded == {name: [values[i] for i in (0, 1, 2, 3, 5, 4)] for name, values in EXPECTED.items()}


def test_documents_and_scores(tmp_path):
    rows = [
        {"query": "q", "documents": ["a", "b", "c"], "scores": [3, 0, 0.5]},
        {"query": "r", "documents": ["b"], "scores": [1]},
    ]
    loaded = load_rankings(write(tmp_path, rows), **SCORED)
    assert loaded.to_dict() == {
        "text": ["q", "q", "q", "r"],
        "text_pair": ["a", "b", "c", "b"],
        "group": [0, 0, 0, 1],
        "labels": [3.0, 0.0, 0.5, 1.0],
    }
    assert load_unlabelled_rankings(tmp_path / "data.jsonl", documents_column="documents")["text_pair"][:] == [
        "a",
        "b",
        "c",
        "b",
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_document_per_row(tmp_path, suffix):
    judged = [("q", "a", 1), ("r", "b", 2), ("q", "c", 0)]
    rows = [dict(zip(("question", "passage", "grade"), row, strict=True)) for row in judged]
    file = write(tmp_path, rows, suffix)
    loaded = load_rankings(file, "question", documents_column="passage", scores_column="grade")
    assert loaded["text_pair"][:] == ["a", "c", "b"]
    assert loaded["labels"][:] == [1.0, 0.0, 2.0]


def test_fields_of_a_nested_column(tmp_path):
    """As in MS MARCO: columns of lists inside of a column."""
    rows = [{"query": "q", "passages": {"is_selected": [0, 1], "passage_text": ["a", "b"]}}]
    for suffix in ("jsonl", "parquet"):
        file, columns = write(tmp_path, rows, suffix), {"documents_column": "passages.passage_text"}
        assert load_rankings(file, **columns, scores_column="passages.is_selected")["labels"][:] == [0.0, 1.0]
        assert load_unlabelled_rankings(file, **columns)["text_pair"][:] == ["a", "b"]
        with pytest.raises(ValueError, match=r"no column 'passages.score', only 'query', 'passages.is_selected'"):
            load_rankings(file, **columns, scores_column="passages.score")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_relevant_documents_alone(tmp_path, suffix):
    pairs = [("q", "a"), ("r", "b"), ("q", "c")]
    file = write(tmp_path, [dict(zip(("question", "answer"), pair, strict=True)) for pair in pairs], suffix)
    loaded = load_rankings(file, "question", "answer", negative_column=None)
    assert loaded.to_dict() == {
        "text": ["q", "q", "r"],
        "text_pair": ["a", "c", "b"],
        "group": [0, 0, 1],
        "labels": [1.0, 1.0, 1.0],
    }


def test_a_search_over_the_documents_of_all_queries(tmp_path):
    queries, documents, relevant = retrieval_of_rankings(load_rankings(write(tmp_path, TRIPLES)))
    assert (queries, documents) == (["q", "r"], ["a", "b", "c", "d", "e"])
    assert relevant == [{0: 1.0}, {3: 1.0, 4: 1.0}]
    vectors = {"q": [1, 0], "r": [0, 1], "a": [1, 0.1], "b": [1, 2], "c": [-1, 0], "d": [0.1, 1], "e": [1, 1.5]}
    measured = retrieval_metrics([vectors[q] for q in queries], [vectors[d] for d in documents], relevant)
    assert measured["mrr@10"] == 1.0
    assert measured["map@100"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)  # r finds d, b, e


def test_a_search_with_grades(tmp_path):
    """Rows in another order, too. A document may be relevant to several queries."""
    rows = [
        {"query": "q", "documents": ["a", "b", "c"], "scores": [3, 0, 0.5]},
        {"query": "r", "documents": ["c", "b"], "scores": [1, 0]},
    ]
    loaded = load_rankings(write(tmp_path, rows), **SCORED)
    assert retrieval_of_rankings(loaded) == (["q", "r"], ["a", "b", "c"], [{0: 3.0, 2: 0.5}, {2: 1.0}])
    assert retrieval_of_rankings(loaded.select([3, 0, 4, 2, 1])) == (
        ["r", "q"],
        ["c", "a", "b"],
        [{0: 1.0}, {1: 3.0, 0: 0.5}],
    )


def test_rows_that_are_no_search(tmp_path):
    file = write(tmp_path, TRIPLES)
    with pytest.raises(ValueError, match="The relevance is unknown in 6 rows: 1, 2, 3, 4, 5 and more: retrieval needs"):
        retrieval_of_rankings(load_unlabelled_rankings(file))
    rows = load_rankings(file)
    with pytest.raises(ValueError, match="Queries without a relevant document, in row 2: remove all their rows"):
        retrieval_of_rankings(rows.select([0, 5]))
    with pytest.raises(ValueError, match="rows has no column 'group', only 'text', 'text_pair', 'labels'"):
        retrieval_of_rankings(rows.remove_columns("group"))


def bad(row, message, **options):
    return pytest.param(row, options, message, id=message)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        bad({"query": " "}, "empty texts in the column 'query', in row 2"),
        bad({"query": None}, "empty texts in the column 'query', in row 2"),
        bad(
            {"positive": []}, "queries without a relevant document, in row 2: add one, remove these rows, or give them"
        ),
        bad({"positive": None}, "queries without a relevant document, in row 2"),
        bad({"negative": []}, "queries without a document in the column 'negative', in row 2: ranking needs"),
        bad({"negative": None}, "queries without a document in the column 'negative', in row 2"),
        bad({"negative": ["b", ""]}, "row 2 has an empty text in the column 'negative': remove it"),
        bad({"negative": ["b", None]}, "row 2: None in the column 'negative' must be a string, but is NoneType"),
        bad({"negative": ["x"]}, "row 2: the document 'x' has the relevance 0, but had 1 before, for the same query"),
        bad({"documents": []}, "row 2 has 0 documents but 2 scores: give one score per document", **SCORED),
        bad({"scores": [1]}, "row 2 has 2 documents but 1 scores: give one score per document", **SCORED),
        bad({"scores": [0, 0]}, "queries without a relevant document, in row 2", **SCORED),
        bad({"scores": [1, -1]}, "row 2: -1 in the column 'scores' must be a number of 0 or more", **SCORED),
        bad({"scores": [1, None]}, "row 2: None in the column 'scores' must be a number of 0 or more", **SCORED),
        bad({"documents": ["x", "x"]}, "row 2: the document 'x' has the relevance 0, but had 1 before", **SCORED),
    ],
)
def test_bad_rows(tmp_path, row, options, message):
    good = {"query": "q", "positive": ["x"], "negative": ["y"], "documents": ["x", "y"], "scores": [1, 0]}
    file = write(tmp_path, [good, {**good, "query": "r", **row}])
    with pytest.raises(ValueError, match=rf"data\.jsonl.*{message}"):
        load_rankings(file, **options)


def test_options_that_do_not_fit(tmp_path):
    file = write(tmp_path, TRIPLES)
    with pytest.raises(ValueError, match="documents_column='documents' and scores_column=None must be given together"):
        load_rankings(file, documents_column="documents")
    with pytest.raises(ValueError, match="has no column 'documents' and no column 'scores', only 'query'"):
        load_rankings(file, **SCORED)
    file = write(tmp_path, [{"query": "q", "documents": ["a"]}, {"query": "r", "documents": []}])
    with pytest.raises(ValueError, match="has queries without a document, in row 2: remove these rows"):
        load_unlabelled_rankings(file, documents_column="documents")
