"""Loads queries with their documents for reranking: one row per query and document."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.data.reading import check_columns, check_texts, read_rows
from hf_distill.data.showing import listed_rows, short

COLUMNS = ("text", "text_pair", "group", "labels")

NO_RELEVANCE = math.nan
"""Label of a document whose relevance is unknown."""


def load_rankings(
    source: str | Path,
    query_column: str = "query",
    positive_column: str = "positive",
    negative_column: str | None = "negative",
    documents_column: str | None = None,
    scores_column: str | None = None,
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads queries, each with documents and their relevance.

    A row has a query, and either its positive and its negative documents, or all its documents and their relevances.
    Rows with the same query form one group.

    Args:
        source: a .csv (with a header), .json, .jsonl or .parquet file; a folder that `datasets.load_dataset` reads; or
            a Hub name.
        query_column: column with the queries.
        positive_column: column with the relevant documents: one text or a list of texts. Not used with
            `documents_column`.
        negative_column: column with the documents that are not relevant: one text or a list of texts. Not used with
            `documents_column`. None if the data has only relevant documents, which is enough for retrieval, where the
            documents of the other queries are searched too.
        documents_column: column with one document or a list of documents. A dot reads a field of a nested column, such
            as `passages.passage_text`.
        scores_column: column with the relevance of each of these documents, 0 for a document that is not relevant:
            numbers of 0 or more.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with one row per query and document and the columns `text` (the query), `text_pair` (the document),
        `group` (the number of the query, from 0) and `labels` (the relevance: 1.0 for positive and 0.0 for negative
        documents, or the score). A document that a query has twice is kept once.

    Raises:
        ValueError: if a query or a document is missing or is not a string; if a query has no relevant document, or
            nothing but relevant ones where there are no scores; if documents and scores differ in number; if a score is
            not a number of 0 or more; or if a document is given twice for a query, with different relevance. Rows are
            counted from 1, without the header.

    Example:
        >>> rows = load_rankings("queries.jsonl")  # {"query": "...", "positive": "...", "negative": ["...", "..."]}
        >>> rows[0]
        {'text': 'what is rba', 'text_pair': 'Since 2007, the RBA ...', 'group': 0, 'labels': 1.0}
        >>> judged = load_rankings("judged.jsonl", documents_column="results", scores_column="relevance")
    """
    if (documents_column is None) != (scores_column is None):
        raise ValueError(
            f"documents_column={documents_column!r} and scores_column={scores_column!r} must be given together: the "
            f"scores say which documents are relevant."
        )
    groups = _Groups(str(source))
    if documents_column is not None and scores_column is not None:
        columns = [query_column, documents_column, scores_column]
        for number, query, documents, scores in _read(source, columns, split, config_name):
            where = f"{source}, row {number}"
            texts, relevances = _texts(documents, documents_column, where), _numbers(scores, scores_column, where)
            if len(texts) != len(relevances):
                raise ValueError(
                    f"{where} has {len(texts)} documents but {len(relevances)} scores: give one score per document."
                )
            groups.add(number, query, zip(texts, relevances, strict=True))
        groups.check_relevant()
        return groups.dataset()
    columns = [query_column, positive_column] + ([] if negative_column is None else [negative_column])
    for number, query, *values in _read(source, columns, split, config_name):
        for column, value, relevance in zip(columns[1:], values, (1.0, 0.0), strict=False):
            texts = _texts(value, column, f"{source}, row {number}")
            groups.add(number, query, ((text, relevance) for text in texts))
    groups.check_relevant()
    if negative_column is not None:
        groups.check_negatives(negative_column)
    return groups.dataset()


def load_unlabelled_rankings(
    source: str | Path,
    query_column: str = "query",
    positive_column: str = "positive",
    negative_column: str = "negative",
    documents_column: str | None = None,
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads queries with documents whose relevance only the teacher judges.

    Args:
        source: as in `load_rankings`.
        query_column: column with the queries.
        positive_column: column with one document or a list of documents. Not used with `documents_column`.
        negative_column: column with more documents. Not used with `documents_column`.
        documents_column: column with one document or a list of documents.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        The columns of `load_rankings`. All labels are NaN, which means that the relevance is unknown.

    Raises:
        ValueError: if a query or a document is missing or is not a string, or if a query has no document.

    Example:
        >>> columns = {"documents_column": "passages.passage_text", "config_name": "v1.1"}
        >>> rows = load_unlabelled_rankings("microsoft/ms_marco", **columns)
    """
    if documents_column is None:
        columns = [query_column, positive_column, negative_column]
    else:
        columns = [query_column, documents_column]
    groups = _Groups(str(source))
    for number, query, *values in _read(source, columns, split, config_name):
        for column, value in zip(columns[1:], values, strict=True):
            texts = _texts(value, column, f"{source}, row {number}")
            groups.add(number, query, ((text, NO_RELEVANCE) for text in texts))
    groups.check_documents()
    return groups.dataset()


def retrieval_of_rankings(rows: Dataset) -> tuple[list[str], list[str], list[dict[int, float]]]:
    """Makes a search out of rankings: every query over the documents of all queries.

    Args:
        rows: a dataset from `load_rankings`.

    Returns:
        The queries; the distinct documents, in the order of the rows; and for each query the relevance of its relevant
        documents by their index. Documents that no query names can be appended to the list of documents.

    Raises:
        ValueError: if the rows are not from `load_rankings`, if a relevance is unknown, or if a query has no relevant
            document. Rows are counted from 1.

    Example:
        >>> rows = load_rankings("sentence-transformers/natural-questions", "query", "answer", negative_column=None)
        >>> queries, documents, relevant = retrieval_of_rankings(rows)
        >>> retrieval_metrics(embed(queries), embed(documents), relevant)
    """
    check_columns(rows.column_names, COLUMNS, "rows")
    columns = [rows[column][:] for column in COLUMNS]
    unknown = [number for number, relevance in enumerate(columns[-1], start=1) if math.isnan(relevance)]
    if unknown:
        raise ValueError(
            f"The relevance is unknown in {listed_rows(unknown)}: retrieval needs rows from load_rankings, not from "
            f"load_unlabelled_rankings."
        )
    queries: dict[int, str] = {}
    first: dict[int, int] = {}
    documents: dict[str, int] = {}
    relevant: dict[int, dict[int, float]] = {}
    for number, (query, document, group, relevance) in enumerate(zip(*columns, strict=True), start=1):
        queries.setdefault(group, query)
        first.setdefault(group, number)
        index = documents.setdefault(document, len(documents))
        found = relevant.setdefault(group, {})
        if relevance > 0:
            found[index] = relevance
    if without := [first[group] for group, found in relevant.items() if not found]:
        raise ValueError(f"Queries without a relevant document, in {listed_rows(without)}: remove all their rows.")
    return list(queries.values()), list(documents), list(relevant.values())


@dataclass
class _Groups:
    """The queries read so far, each with its documents.

    Attributes:
        source: name of the data, for errors.
        documents: relevance by query and document.
        rows: first row of each query.
    """

    source: str
    documents: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, number: int, query: str, documents: Iterable[tuple[str, float]]) -> None:
        group = self.documents.setdefault(query, {})
        self.rows.setdefault(query, number)
        for text, relevance in documents:
            earlier = group.setdefault(text, relevance)
            if relevance != earlier and not math.isnan(relevance):
                raise ValueError(
                    f"{self.source}, row {number}: the document {short(text)} has the relevance {relevance:g}, but had "
                    f"{earlier:g} before, for the same query: remove one of them."
                )

    def check_documents(self) -> None:
        if without := [self.rows[query] for query, group in self.documents.items() if not group]:
            raise ValueError(
                f"{self.source} has queries without a document, in {listed_rows(without)}: remove these rows."
            )

    def check_relevant(self) -> None:
        if without := [self.rows[query] for query, group in self.documents.items() if not any(group.values())]:
            raise ValueError(
                f"{self.source} has queries without a relevant document, in {listed_rows(without)}: add one, remove "
                f"these rows, or give them as unlabelled data, for a teacher to judge."
            )

    def check_negatives(self, column: str) -> None:
        if without := [self.rows[query] for query, group in self.documents.items() if all(group.values())]:
            raise ValueError(
                f"{self.source} has queries without a document in the column {column!r}, in {listed_rows(without)}: "
                f"ranking needs documents that are not relevant. Add some, or give documents_column and scores_column."
            )

    def dataset(self) -> Dataset:
        rows = [
            (query, text, number, relevance)
            for number, (query, group) in enumerate(self.documents.items())
            for text, relevance in group.items()
        ]
        return Dataset.from_dict(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))


def _read(source: str | Path, columns: list[str], split: str, config_name: str | None) -> Iterator[tuple[Any, ...]]:
    """Yields the number of each row, and its values."""
    outer = [column.partition(".")[0] for column in columns]
    rows = read_rows(source, outer, split, config_name)
    if any("." in column for column in columns):
        rows = rows.flatten()
        check_columns(rows.column_names, columns, source)
    check_texts(rows, columns[0], source)
    number = 0
    for batch in rows.select_columns(columns).iter(1000):
        for values in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            yield number, *values


def _texts(value: object, column: str, where: str) -> list[str]:
    """One text or a list of texts, as a list."""
    texts = []
    for text in [] if value is None else value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: {short(text)} in the column {column!r} must be a string, but is {type(text).__name__}."
            )
        if not text.strip():
            raise ValueError(f"{where} has an empty text in the column {column!r}: remove it.")
        texts.append(text)
    return texts


def _numbers(value: object, column: str, where: str) -> list[float]:
    """One score or a list of scores, as a list."""
    return [_number(score, column, where) for score in (value if isinstance(value, list) else [value])]


def _number(score: object, column: str, where: str) -> float:
    try:
        number = float(score)  # type: ignore[arg-type]  # a CSV file has strings
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"{where}: {short(score)} in the column {column!r} must be a number of 0 or more, 0 for a document that is "
            f"not relevant."
        )
    return number
