"""Metrics of a reranker: the order of the documents of each query, compared with their relevance and the teacher."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from hf_distill.evaluation.classification import is_constant
from hf_distill.optional import optional

DEPTH = 10
"""Number of documents from the top of a ranking that count for NDCG@10, MRR@10 and the overlap with the teacher."""


def ranking_metrics(
    scores: ArrayLike, groups: ArrayLike, labels: ArrayLike | None = None, teacher_scores: ArrayLike | None = None
) -> dict[str, float]:
    """Measures how well scores order the documents of each query, and how closely they follow the teacher's order.

    All metrics are means over the queries.

    Args:
        scores: `[rows]` or `[rows, 1]`, the score of each document; higher means more relevant.
        groups: `[rows]`, the number of each document's query. The rows of a query may be in any order.
        labels: `[rows]`, the relevance of each document, 0 or more; NaN where unknown. Rows without relevance, and
            queries without a relevant document, are left out of the quality. None if the relevance is unknown.
        teacher_scores: `[rows]` or `[rows, 1]`, the teacher's scores of the same documents.

    Returns:
        With labels: `ndcg@10`, the discounted cumulative gain of the first ten documents, relative to that of the best
        order; the gain is the relevance itself, and documents with the same score share the mean gain, as in
        scikit-learn. `mrr@10`, 1 divided by the rank of the first relevant document, 0 if it is not among the first
        ten; documents with the same score count in all orders equally. `map`, the average precision.
        With the teacher's scores: `spearmanr_to_teacher`, the rank correlation of the scores of a query, over queries
        with at least two documents, 0 where it is undefined; `agreement`, the share of queries where both rank the same
        document first; and `overlap@10`, the share of the teacher's first ten documents that are among the first ten,
        over queries with more than ten documents, if there are any.

    Raises:
        ValueError: if the numbers of rows differ, if a score is not finite, if a relevance is negative, or if there is
            nothing to compare with.
        ImportError: if scikit-learn is missing.

    Reference: Järvelin and Kekäläinen, 2002, https://doi.org/10.1145/582415.582418 (NDCG)

    Example:
        >>> measured = ranking_metrics([0.9, 0.3, 0.1, 0.7], groups=[0, 0, 1, 1], labels=[1, 0, 1, 0])
        >>> measured["mrr@10"]
        0.75
    """
    own = _numbers(scores, "scores", len(np.ravel(groups)))
    measured: dict[str, float] = {}
    if labels is not None:
        relevance = _numbers(labels, "labels", len(own), may_be_unknown=True)
        if (relevance < 0).any():
            raise ValueError(f"labels must be relevances of 0 or more, but one is {np.nanmin(relevance):g}.")
        queries = [(own[rows], relevance[rows]) for rows in _queries(groups, ~np.isnan(relevance))]
        queries = [(score, gain) for score, gain in queries if gain.any()]
        if queries:
            for name, metric in QUALITY.items():
                measured[name] = float(np.mean([metric(score, gain) for score, gain in queries]))
    if teacher_scores is not None:
        teacher = _numbers(teacher_scores, "teacher_scores", len(own))
        measured |= _fidelity([(own[rows], teacher[rows]) for rows in _queries(groups, np.ones(len(own), bool))])
    if not measured:
        raise ValueError("Nothing to measure: give teacher_scores, or labels with a relevant document.")
    return measured


def ndcg(scores: np.ndarray, relevance: np.ndarray) -> float:
    """NDCG@10 of one query, from `[documents]` scores and relevances."""
    if len(scores) == 1:
        return 1.0  # scikit-learn has no value for a single document
    return float(optional("sklearn.metrics", "evaluation").ndcg_score([relevance], [scores], k=DEPTH))


def reciprocal_rank(scores: np.ndarray, relevance: np.ndarray) -> float:
    """Reciprocal rank of the first relevant document among the first ten, the mean over all orders of equal scores."""
    best = scores[relevance > 0].max()
    tied = scores == best
    return expected_reciprocal_rank(int((scores > best).sum()), int(tied.sum()), int((relevance[tied] > 0).sum()))


def expected_reciprocal_rank(above: int, tied: int, relevant: int) -> float:
    """Mean over all orders of tied documents of 1 divided by the rank of the first relevant one; 0 after rank 10.

    Args:
        above: number of documents ranked higher, none of them relevant.
        tied: number of documents that share the best score of a relevant document.
        relevant: number of those that are relevant.
    """
    orders = math.comb(tied, relevant)
    first = range(1, min(tied - relevant + 1, DEPTH - above) + 1)  # place of the first relevant one of those tied
    return sum(math.comb(tied - place, relevant - 1) / orders / (above + place) for place in first)


def average_precision(scores: np.ndarray, relevance: np.ndarray) -> float:
    """Average precision of one query, as in scikit-learn."""
    return float(optional("sklearn.metrics", "evaluation").average_precision_score(relevance > 0, scores))


QUALITY = {"ndcg@10": ndcg, "mrr@10": reciprocal_rank, "map": average_precision}
"""Metrics of one query, from scores and relevances."""


def _fidelity(queries: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Compares the scores of student and teacher, `[documents]` each, for each query."""
    correlations = [_correlation(own, teacher) for own, teacher in queries if len(own) > 1]
    overlaps = [
        len({*_first(own, DEPTH)} & {*_first(teacher, DEPTH)}) / DEPTH for own, teacher in queries if len(own) > DEPTH
    ]
    measured = {"agreement": float(np.mean([_first(own, 1) == _first(teacher, 1) for own, teacher in queries]))}
    if correlations:
        measured = {"spearmanr_to_teacher": float(np.mean(correlations))} | measured
    if overlaps:
        measured["overlap@10"] = float(np.mean(overlaps))
    return measured


def _correlation(own: np.ndarray, teacher: np.ndarray) -> float:
    if is_constant(own.tolist()) or is_constant(teacher.tolist()):
        return 0.0
    return float(optional("scipy.stats", "evaluation").spearmanr(own, teacher).statistic)


def _first(scores: np.ndarray, number: int) -> list[int]:
    """The first documents of a ranking, in the order of the rows where scores are equal."""
    return np.argsort(-scores, kind="stable")[:number].tolist()


def _queries(groups: ArrayLike, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The chosen rows of each query."""
    numbers = np.ravel(groups)
    order = np.flatnonzero(chosen)[np.argsort(numbers[chosen], kind="stable")]
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return (rows for rows in np.split(order, starts) if len(rows))


def _numbers(values: ArrayLike, name: str, num_rows: int, may_be_unknown: bool = False) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size != num_rows or len(numbers) != num_rows:
        raise ValueError(f"{name} have the shape {list(numbers.shape)}: they must be one number per row, [{num_rows}].")
    numbers = numbers.reshape(-1)
    if not (np.isfinite(numbers) | (np.isnan(numbers) & may_be_unknown)).all():
        raise ValueError(f"{name} have NaN or infinite values: check the model's weights for NaN.")
    return numbers
