"""Loads texts for embedding models: plain texts, scored pairs of texts, or queries with relevant documents."""

import csv
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import Dataset, Features, List, Value

from hf_distill.data.pairs import load_labelled_pairs
from hf_distill.data.rankings import load_rankings, retrieval_of_rankings
from hf_distill.data.reading import read_rows
from hf_distill.data.texts import load_unlabelled_texts

Kind = Literal["texts", "pairs", "retrieval"]

FEATURES = Features(
    {
        "text": Value("string"),
        "role": Value("string"),
        "partners": List(Value("int64")),
        "scores": List(Value("float64")),
    }
)
"""The columns of the rows, see `load_texts_to_embed`."""


def load_texts_to_embed(
    source: str | Path,
    kind: Kind | None = None,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    score_column: str = "score",
    query_column: str = "query",
    positive_column: str = "positive",
    documents_column: str = "documents",
    scores_column: str = "scores",
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads texts for an embedding model, one per row.

    | `kind` | columns of the data | what can be measured |
    |---|---|---|
    | `"texts"` | `text_column`; or a .txt file with one text per line | agreement with a teacher |
    | `"pairs"` | `text_column`, `text_pair_column`, `score_column` | correlation with the scores |
    | `"retrieval"` | `query_column`, and `positive_column` or `documents_column` with `scores_column` | retrieval |

    Args:
        source: a .csv (with a header), .json, .jsonl, .parquet or .txt file; a folder that `datasets.load_dataset`
            reads; or a Hub name.
        kind: what the data is. Default: retrieval if there is a column `query_column`, pairs if there are the columns
            `text_pair_column` and `score_column`, else texts.
        text_column: column with texts, or with the first texts of pairs.
        text_pair_column: column with the second texts of pairs.
        score_column: column with the similarity of each pair, a number.
        query_column: column with queries.
        positive_column: column with the relevant documents of a query: one text or a list.
        documents_column: column with a list of documents, in place of `positive_column`.
        scores_column: column with the relevance of each of these documents.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns `text`; `role`: `"text"`, `"first"`, `"second"`, `"query"` or `"document"`;
        `partners`: for a second text or a document, the rows of the texts or queries that it has a score with; and
        `scores`: these scores, similarities or relevances.

    Raises:
        ValueError: if the data cannot be read, a column is missing, a text is empty, or a score is not a number.

    Example:
        >>> rows = load_texts_to_embed("sentences.txt")
        >>> rows = load_texts_to_embed("mteb/stsbenchmark-sts", "pairs", "sentence1", "sentence2", split="test")
    """
    if kind not in (None, *get_args(Kind)):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, get_args(Kind)))}.")
    columns = [] if Path(source).suffix == ".txt" else _columns_of(source, split, config_name)
    if kind is None:
        has_pairs = {text_pair_column, score_column} <= {*columns}
        kind = "retrieval" if query_column in columns else "pairs" if has_pairs else "texts"
    place: dict[str, Any] = {"split": split, "config_name": config_name}
    if kind == "texts":
        return _rows(load_unlabelled_texts(source, text_column, **place)["text"][:], "text")
    if kind == "pairs":
        names = (text_column, text_pair_column, score_column)
        pairs, _ = load_labelled_pairs(source, *names, problem_type="regression", **place)
        first, second, scores = pairs["text"][:], pairs["text_pair"][:], pairs["labels"][:]
        links = [([number], [float(score)]) for number, score in enumerate(scores)]
        return _joined(_rows(first, "first"), second, "second", links)
    has_documents = documents_column in columns and scores_column in columns
    documents_of = {"documents_column": documents_column, "scores_column": scores_column} if has_documents else {}
    rankings = load_rankings(source, query_column, positive_column, None, **documents_of, **place)
    queries, documents, relevant = retrieval_of_rankings(rankings)
    of_document: list[tuple[list[int], list[float]]] = [([], []) for _ in documents]
    for query, found in enumerate(relevant):
        for document, relevance in found.items():
            of_document[document][0].append(query)
            of_document[document][1].append(relevance)
    return _joined(_rows(queries, "query"), documents, "document", of_document)


def _columns_of(source: str | Path, split: str, config_name: str | None) -> list[str]:
    """The columns of the data; none of a folder of .txt files."""
    path = Path(source)
    if path.suffix == ".csv" and path.is_file():
        with path.open(encoding="utf-8-sig", newline="", errors="replace") as opened:
            return next(csv.reader(opened), [])
    if path.is_dir() and any(path.rglob("*.txt")):
        return []
    return read_rows(source, [], split, config_name).column_names


def _rows(texts: list[str], role: str, links: list[tuple[list[int], list[float]]] | None = None) -> Dataset:
    links = links if links is not None else [([], [])] * len(texts)
    partners, scores = [list(own) for own in zip(*links, strict=True)] if links else ([], [])
    columns = {"text": texts, "role": [role] * len(texts), "partners": partners, "scores": scores}
    return Dataset.from_dict(columns, features=FEATURES)


def _joined(first: Dataset, texts: list[str], role: str, links: list[tuple[list[int], list[float]]]) -> Dataset:
    """Rows followed by their partners, in one table that is not an index into others."""
    second = _rows(texts, role, links)
    return Dataset.from_dict({name: first[name][:] + second[name][:] for name in FEATURES}, features=FEATURES)
