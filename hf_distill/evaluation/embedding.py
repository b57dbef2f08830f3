"""Metrics of embeddings: similarity of pairs, retrieval, and how closely the vectors follow the teacher's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike

from hf_distill.data.showing import listed, short
from hf_distill.evaluation.classification import as_tensor
from hf_distill.evaluation.ranking import DEPTH, expected_reciprocal_rank
from hf_distill.evaluation.regression import correlation
from hf_distill.optional import optional

SEARCHED = 100
"""Number of documents from the top of a ranking that count for recall@100 and MAP@100."""

NUM_OTHERS = 1000
"""Number of other texts that the similarities of a text are correlated over; of fewer texts, all."""

DECIMALS = 9
"""Cosines are rounded to this many decimals, so that equal vectors tie although sums differ in the last bits."""

BLOCK = 2**21
"""Number of cosines that are held at a time for each model: 16 MiB."""

MIN_ROWS = 64
"""Least number of rows in a block, for products that use the processor well; less memory than the columns' vectors."""


def similarity_metrics(vectors_a: ArrayLike, vectors_b: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """Measures how well the cosine of two texts agrees with the similarity that people gave them (STS).

    Args:
        vectors_a: `[pairs, width]`, vectors of the first text of each pair: an array, a tensor or lists.
        vectors_b: `[pairs, width]`, vectors of the second text of each pair.
        scores: `[pairs]`, the similarity of each pair, on any scale; higher means more similar. They are the column
            `labels` of `load_labelled_pairs(..., problem_type="regression")`.

    Returns:
        `spearman_cosine` and `pearson_cosine`, the rank correlation and the linear correlation of cosines and scores, 0
        where they are undefined.

    Raises:
        ValueError: if the numbers of pairs or the widths differ, if there are fewer than two pairs, if a vector is zero
            or not finite, or if a score is not finite. Rows are counted from 0.
        ImportError: if SciPy is missing.

    Reference: Reimers et al., 2016, https://aclanthology.org/C16-1009 (why Spearman is the one to report)

    Example:
        >>> measured = similarity_metrics([[1, 0], [1, 0], [1, 0]], [[1, 0], [1, 1], [0, 1]], scores=[5.0, 3.0, 1.0])
        >>> measured["spearman_cosine"]
        1.0
    """
    first, second = _unit_vectors(vectors_a, "vectors_a"), _unit_vectors(vectors_b, "vectors_b")
    _check_same_number(first, second, "vectors_a", "vectors_b")
    _check_same_width(first, second, "vectors_a", "vectors_b")
    known = as_tensor(scores, "scores", "[pairs]").double().numpy()
    if known.shape != (len(first),):
        raise ValueError(f"scores have the shape {list(known.shape)}: they must be one per pair, [{len(first)}].")
    if len(bad := np.flatnonzero(~np.isfinite(known))):
        raise ValueError(f"scores have NaN or infinite values in {_rows(bad, known)}: remove these pairs.")
    if len(first) < 2:
        raise ValueError("There is only one pair: a correlation needs at least two.")
    cosines = _rounded(np.einsum("ij,ij->i", first, second)).tolist()
    return {
        "spearman_cosine": correlation("spearmanr", cosines, known.tolist()),
        "pearson_cosine": correlation("pearsonr", cosines, known.tolist()),
    }


def retrieval_metrics(
    query_vectors: ArrayLike, document_vectors: ArrayLike, relevant: Sequence[Mapping[int, float]]
) -> dict[str, float]:
    """Measures how well the nearest documents by cosine are the relevant ones.

    All metrics are means over the queries. Documents with the same cosine count in all orders equally.

    Every query is compared with every document, in blocks. Next to the vectors in float64 this takes less than 100 MB
    of memory; with more than 60,000 documents, 1 KB per document.

    Args:
        query_vectors: `[queries, width]`, an array, a tensor or lists.
        document_vectors: `[documents, width]`, the documents that are searched.
        relevant: for each query, the relevance of documents by their index: numbers of 0 or more. A document that is
            not named is not relevant. `retrieval_of_rankings` makes it from rows of `load_rankings`.

    Returns:
        `ndcg@10`, the discounted cumulative gain of the first ten documents, relative to that of the best order; the
        gain is the relevance itself, as in `ranking_metrics`. `mrr@10`, 1 divided by the rank of the first relevant
        document, 0 if it is not among the first ten. `recall@10` and, with at least 100 documents, `recall@100`, the
        share of the relevant documents that are among the first. `map@100`, the precision at each relevant document
        among the first hundred, summed and divided by the number of relevant documents, at most 100.

    Raises:
        ValueError: if the widths differ, if a vector is zero or not finite, if `relevant` does not fit the queries and
            documents, or if a query has no relevant document. Rows and queries are counted from 0.

    Reference: Thakur et al., 2021, https://arxiv.org/abs/2104.08663 (BEIR)

    Example:
        >>> measured = retrieval_metrics([[1, 0], [0, 1]], [[2, 1], [1, 9], [1, 1]], relevant=[{0: 1.0}, {2: 1.0}])
        >>> measured["mrr@10"], measured["recall@10"]
        (0.75, 1.0)
    """
    queries, documents = (
        _unit_vectors(query_vectors, "query_vectors"),
        _unit_vectors(document_vectors, "document_vectors"),
    )
    _check_same_width(queries, documents, "query_vectors", "document_vectors")
    wanted = _relevances(relevant, len(queries), len(documents))
    metrics = {name: metric for name, metric in QUALITY.items() if name != "recall@100" or len(documents) >= SEARCHED}
    measured: dict[str, list[float]] = {name: [] for name in metrics}
    for rows in _blocks(len(queries), len(documents)):
        for (indices, gains), cosines in zip(wanted[rows], _cosines(queries[rows], documents), strict=True):
            above, tied = _places(cosines, indices)
            for name, metric in metrics.items():
                measured[name].append(metric(above, tied, gains))
    return {name: float(np.mean(values)) for name, values in measured.items()}


def agreement_metrics(vectors: ArrayLike, teacher_vectors: ArrayLike, k: int = DEPTH) -> dict[str, float]:
    """Measures how closely the vectors of texts follow the teacher's vectors of the same texts.

    Vectors of different width are compared by their similarities: which texts are near to which. Every text is compared
    with every other, in blocks. Next to the vectors in float64 this takes about 100 MB of memory; with more than 30,000
    texts, 3 KB per text.

    Args:
        vectors: `[texts, width]`, vectors of the student or any other model: an array, a tensor or lists.
        teacher_vectors: `[texts, teacher width]`, the teacher's vectors of the same texts.
        k: number of nearest neighbours that are compared.

    Returns:
        `cosine_to_teacher`, the mean cosine of a vector and the teacher's, if both have the same width. It means little
        for a student that was not trained to give the same vectors. `overlap@10` (for `k=10`), the mean share of the
        `k` nearest neighbours of a text that are also the teacher's `k` nearest; texts that tie for the last places
        share them. `spearmanr_to_teacher`, the mean over the texts of the rank correlation of both models' cosines
        with other texts, 0 where it is undefined: all others up to 1001 texts, else a fixed random sample of 1000.

    Raises:
        ValueError: if the numbers of texts differ, if a vector is zero or not finite, or if there are fewer than
            `k + 1` texts. Rows are counted from 0.
        ImportError: if SciPy is missing.

    Example:
        >>> measured = agreement_metrics([[1, 0], [2, 1], [0, 1]], [[1, 0, 0], [2, 1, 0], [0, 1, 0]], k=1)
        >>> measured["overlap@1"]
        1.0
    """
    own, teacher = _unit_vectors(vectors, "vectors"), _unit_vectors(teacher_vectors, "teacher_vectors")
    _check_same_number(own, teacher, "vectors", "teacher_vectors")
    if k < 1 or len(own) < k + 1:
        raise ValueError(
            f"k={k} nearest neighbours need k of 1 or more and at least k + 1 texts, but there are {len(own)}."
        )
    measured = {}
    if own.shape == teacher.shape:
        measured["cosine_to_teacher"] = float(_rounded(np.einsum("ij,ij->i", own, teacher)).mean())
    others = _sample(len(own))
    overlaps, correlations = [], []
    for rows in _blocks(len(own), len(own)):
        numbers = np.arange(rows.start, rows.stop)
        both = [_cosines(vectors[rows], vectors) for vectors in (own, teacher)]
        ranks = [_ranks(_without_self(cosines, numbers, others)) for cosines in both]
        correlations.append(np.einsum("ij,ij->i", *ranks))
        for cosines in both:
            cosines[numbers - rows.start, numbers] = -np.inf
        overlaps.append(np.minimum(*(_nearest(cosines, k) for cosines in both)).sum(1) / k)
    measured[f"overlap@{k}"] = float(np.concatenate(overlaps).mean())
    measured["spearmanr_to_teacher"] = float(np.concatenate(correlations).mean())
    return measured


def _places(cosines: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the `[documents]` are nearer than each document of `indices`, and how many are equally near.

    The first is 100 or more, but not exact, for documents that are not among the first hundred.
    """
    distances = -cosines
    last = min(SEARCHED, len(distances)) - 1
    found = np.sort(distances[distances <= np.partition(distances, last)[last]])
    above = np.searchsorted(found, distances[indices], side="left")
    upto = np.searchsorted(found, distances[indices], side="right")
    return above, np.maximum(upto - above, 1)


def _ndcg(above: np.ndarray, tied: np.ndarray, gains: np.ndarray) -> float:
    """NDCG@10 of one query, from the places and gains of its relevant documents."""
    sums = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(DEPTH) + 2))])  # of the discounts of the first places
    discounts = (sums[np.minimum(above + tied, DEPTH)] - sums[np.minimum(above, DEPTH)]) / tied
    best = np.sort(gains)[::-1][:DEPTH]
    return float(gains @ discounts / (best @ np.diff(sums)[: len(best)]))


def _reciprocal_rank(above: np.ndarray, tied: np.ndarray, gains: np.ndarray) -> float:
    first = above.argmin()
    return expected_reciprocal_rank(int(above[first]), int(tied[first]), int((above == above[first]).sum()))


def _recall(above: np.ndarray, tied: np.ndarray, gains: np.ndarray, depth: int) -> float:
    return float(np.clip((depth - above) / tied, 0, 1).mean())


def _average_precision(above: np.ndarray, tied: np.ndarray, gains: np.ndarray) -> float:
    """MAP@100 of one query: at each place of a relevant document, the mean precision over all orders of equal ones."""
    total, earlier = 0.0, 0
    for start in np.unique(above[above < SEARCHED]):
        same = above == start
        number, relevant = int(tied[same][0]), int(same.sum())
        places = np.arange(1, min(number, SEARCHED - start) + 1)
        before = earlier + (places - 1) * (relevant - 1) / max(number - 1, 1)  # relevant ones before this one
        total += relevant / number * float(((before + 1) / (start + places)).sum())
        earlier += relevant
    return total / min(SEARCHED, len(above))


QUALITY: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "ndcg@10": _ndcg,
    "mrr@10": _reciprocal_rank,
    "recall@10": partial(_recall, depth=DEPTH),
    "recall@100": partial(_recall, depth=SEARCHED),
    "map@100": _average_precision,
}
"""Metrics of one query, from `[relevant documents]`: how many are nearer, how many equally near, and the relevance."""


def _nearest(cosines: np.ndarray, k: int) -> np.ndarray:
    """`[rows, texts]`: 1 for the `k` nearest of each row and 0 for the others. Ties for the last places share them."""
    last = np.partition(cosines, -k, axis=1)[:, -k, None]
    nearer, tied = cosines > last, cosines == last
    share = (k - nearer.sum(1, keepdims=True)) / tied.sum(1, keepdims=True)
    return np.where(tied, share, nearer)


def _sample(num_texts: int) -> np.ndarray:
    """The texts that all are compared with: one more than needed, because a text is not compared with itself."""
    if num_texts <= NUM_OTHERS + 1:
        return np.arange(num_texts)
    return np.random.default_rng(0).choice(num_texts, NUM_OTHERS + 1, replace=False)


def _without_self(cosines: np.ndarray, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`[rows, others - 1]`: the cosines of the texts `numbers` with other texts, as many for each."""
    keep = others != numbers[:, None]
    keep[keep.all(1), -1] = False
    return cosines[:, others][keep].reshape(len(numbers), -1)


def _ranks(cosines: np.ndarray) -> np.ndarray:
    """Ranks in each row, centred and of unit length, so that their product is the rank correlation; 0 if all tie."""
    ranks = optional("scipy.stats", "evaluation").rankdata(cosines, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, lengths, out=ranks, where=lengths > 0)


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    size = max(MIN_ROWS, BLOCK // num_columns)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def _cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return _rounded(rows @ columns.T)


def _rounded(cosines: np.ndarray) -> np.ndarray:
    return np.round(cosines, DECIMALS, out=cosines)


def _unit_vectors(values: ArrayLike, name: str) -> np.ndarray:
    """Converts vectors to `[texts, width]` of length 1 in float64, and checks them."""
    vectors = as_tensor(values, name, "[texts, width]").double().numpy()
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{name} have the shape {list(vectors.shape)}: they must be [texts, width], one row per text.")
    lengths = np.linalg.norm(vectors, axis=1)
    if len(bad := np.flatnonzero(~np.isfinite(lengths))):
        raise ValueError(
            f"{name} have NaN or infinite values in {_rows(bad, vectors)}: run the model in float32 or bfloat16, or "
            f"check its weights for NaN."
        )
    if len(bad := np.flatnonzero(lengths == 0)):
        raise ValueError(
            f"{name} are zero in {_rows(bad, vectors)}: a zero vector has no cosine. Check these texts and their "
            f"attention mask."
        )
    return vectors / lengths[:, None]


def _relevances(
    relevant: Sequence[Mapping[int, float]], num_queries: int, num_documents: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query, the indices of the relevant documents and their relevances."""
    if len(relevant) != num_queries:
        raise ValueError(f"There are {num_queries} query_vectors, but relevant has {len(relevant)} queries.")
    wanted, without = [], []
    for query, judged in enumerate(relevant):
        if not isinstance(judged, Mapping):
            raise ValueError(
                f"relevant[{query}] is {short(judged)}: it must map indices of documents to relevances, as in "
                f"{{7: 1.0}}."
            )
        for document, relevance in judged.items():
            if not isinstance(document, Integral) or not 0 <= document < num_documents:
                raise ValueError(
                    f"relevant[{query}] names the document {document!r}: it must be an index from 0 to "
                    f"{num_documents - 1}, a row of document_vectors."
                )
            if not isinstance(relevance, Real) or not 0 <= relevance < np.inf:
                raise ValueError(
                    f"relevant[{query}][{document}] is {relevance!r}: a relevance must be a number of 0 or more."
                )
        gains = {int(document): float(relevance) for document, relevance in judged.items() if relevance > 0}
        if not gains:
            without.append(query)
        wanted.append((np.array(list(gains), dtype=np.int64), np.array(list(gains.values()))))
    if without:
        raise ValueError(
            f"{len(without)} of {num_queries} queries have no relevant document, number {listed(without)} (from 0): "
            f"leave them out, with their vectors."
        )
    return wanted


def _rows(numbers: np.ndarray, values: np.ndarray) -> str:
    """Faulty rows in words, counted from 0 as in NumPy."""
    return f"{len(numbers)} of {len(values)} rows, first in row {numbers[0]}"


def _check_same_number(one: np.ndarray, other: np.ndarray, name: str, other_name: str) -> None:
    if len(one) != len(other):
        raise ValueError(f"There are {len(one)} {name}, but {len(other)} {other_name}: give one of each per text.")


def _check_same_width(one: np.ndarray, other: np.ndarray, name: str, other_name: str) -> None:
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} have the width {one.shape[1]}, but {other_name} have {other.shape[1]}: compute both with the same "
            f"model."
        )
