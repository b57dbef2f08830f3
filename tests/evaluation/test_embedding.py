"""Metrics of embeddings: by hand, against sentence-transformers, scikit-learn and all orders of ties, and errors."""

import doctest
import itertools
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group, pearsonr, spearmanr
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from hf_distill import agreement_metrics, ranking_metrics, retrieval_metrics, similarity_metrics
from hf_distill.evaluation import embedding


def random_vectors(num_texts, width=16, seed=0, like=None):
    noise = np.random.default_rng(seed).normal(size=(num_texts, width))
    return noise if like is None else like[:num_texts] + 0.8 * noise


def random_relevant(num_queries, num_documents, most=4, seed=0):
    """Each query has its own document and up to `most - 1` others, with grades from 1 to 3."""
    generator = np.random.default_rng(seed)
    relevant = []
    for query in range(num_queries):
        others = generator.integers(0, num_documents, generator.integers(0, most))
        relevant.append({query: 2.0} | {int(other): float(generator.integers(1, 4)) for other in others})
    return relevant


class Encoder:
    """What an evaluator of sentence-transformers needs of a model: a text is the key of its vector."""

    similarity_fn_name = "cosine"

    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *args: None)

    def __init__(self, vectors):
        self.vectors = {text: torch.tensor(vector) for text, vector in vectors.items()}

    def encode(self, texts, convert_to_tensor=False, **options):
        vectors = torch.stack([self.vectors[text] for text in texts])
        return vectors if convert_to_tensor else vectors.numpy()

    encode_query = encode_document = encode

    def similarity(self, queries, documents):
        return torch.nn.functional.cosine_similarity(queries[:, None], documents[None], dim=-1)


def named(prefix, vectors):
    return {f"{prefix}{number}": vector for number, vector in enumerate(vectors)}


def test_similarity_by_hand():
    """Cosines 1, 0.6 and 0 have the same order as the scores."""
    first, second = [[1, 0], [3, 4], [2, 0]], [[2, 0], [5, 0], [0, 1]]
    measured = similarity_metrics(first, second, [5, 4, 1])
    assert all(type(value) is float for value in measured.values())
    deviations = np.array([7, 1, -8]) / 15, np.array([5, 2, -7]) / 3  # from the means 8/15 and 10/3
    pearson = deviations[0] @ deviations[1] / np.sqrt((deviations[0] @ deviations[0]) * (deviations[1] @ deviations[1]))
    assert measured == {"spearman_cosine": pytest.approx(1.0), "pearson_cosine": pytest.approx(pearson)}
    assert similarity_metrics(first, second, [1, 4, 5])["spearman_cosine"] == pytest.approx(-1.0)


def test_similarity_against_scikit_learn():
    first, second = random_vectors(50), random_vectors(50, seed=1)
    scores = np.random.default_rng(2).integers(0, 6, 50)
    cosines = np.diag(cosine_similarity(first, second))
    assert similarity_metrics(first, second, scores) == {
        "spearman_cosine": pytest.approx(spearmanr(cosines, scores).statistic),
        "pearson_cosine": pytest.approx(pearsonr(cosines, scores).statistic),
    }


def test_similarity_against_sentence_transformers():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    first, second = named("a", random_vectors(200)), named("b", random_vectors(200, seed=1))
    scores = np.random.default_rng(2).uniform(0, 5, 200).tolist()
    theirs = evaluation.EmbeddingSimilarityEvaluator(list(first), list(second), scores)(Encoder(first | second))
    assert similarity_metrics(list(first.values()), list(second.values()), scores) == pytest.approx(theirs)


def test_vectors_that_are_all_the_same_correlate_with_nothing():
    """Their cosines differ in the last bits, which must not count as an order."""
    vectors = np.outer(np.arange(1, 30), random_vectors(1)[0])
    assert similarity_metrics(vectors, vectors[::-1], np.arange(29.0)) == {"spearman_cosine": 0, "pearson_cosine": 0}
    same = agreement_metrics(vectors, random_vectors(29))
    assert same["spearmanr_to_teacher"] == 0.0
    assert same["overlap@10"] == pytest.approx(10 / 28)  # as if ten of the other texts were drawn
    relevant = [{i: 1.0} for i in range(29)]
    guessed = retrieval_metrics(vectors, vectors, relevant)
    assert guessed["recall@10"] == pytest.approx(10 / 29)
    assert guessed["mrr@10"] == pytest.approx(sum(1 / place for place in range(1, 11)) / 29)


def test_retrieval_by_hand():
    """Query 0 finds its documents at ranks 1 and 3 of 4, query 1 its only document at rank 2."""
    documents = [[1.0, 0.0], [3.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
    measured = retrieval_metrics([[1, 0], [0, 2]], documents, [{0: 1.0, 2: 3.0, 1: 0.0}, {2: 1.0}])
    assert all(type(value) is float for value in measured.values())
    assert measured == {
        "ndcg@10": pytest.approx(((1 + 3 / 2) / (3 + 1 / np.log2(3)) + 1 / np.log2(3)) / 2),
        "mrr@10": (1 + 1 / 2) / 2,
        "recall@10": 1.0,
        "map@100": pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2),
    }


def test_retrieval_against_sentence_transformers():
    """With more relevant documents than are searched, too. Their evaluator knows no grades."""
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    documents = random_vectors(400)
    queries = random_vectors(30, seed=1, like=documents)
    relevant = [dict.fromkeys(judged, 1.0) for judged in random_relevant(30, 400)]
    relevant[0] = dict.fromkeys(range(150), 1.0)
    texts, corpus = named("q", queries), named("d", documents)
    evaluator = evaluation.InformationRetrievalEvaluator(
        {text: text for text in texts},
        {text: text for text in corpus},
        {f"q{query}": {f"d{document}" for document in judged} for query, judged in enumerate(relevant)},
        precision_recall_at_k=[10, 100],
    )
    theirs = evaluator(Encoder(texts | corpus))
    measured = retrieval_metrics(queries, documents, relevant)
    assert measured.keys() == {"ndcg@10", "mrr@10", "recall@10", "recall@100", "map@100"}
    assert measured == {name: pytest.approx(theirs[f"cosine_{name}"]) for name in measured}
    assert 0.2 < measured["map@100"] < measured["recall@100"] < 1


def test_retrieval_is_the_ranking_of_all_documents():
    """The first metrics are those of `ranking_metrics` and scikit-learn, also where documents tie."""
    documents = random_vectors(60)
    documents[20:] = documents[np.arange(40) % 7]
    queries, relevant = random_vectors(20, seed=1, like=documents), random_relevant(20, 60)
    cosines, labels = cosine_similarity(queries, documents).round(9), np.zeros((20, 60))
    for query, judged in enumerate(relevant):
        labels[query, list(judged)] = list(judged.values())
    measured = retrieval_metrics(queries, documents, relevant)
    ranked = ranking_metrics(cosines.ravel(), np.repeat(np.arange(20), 60), labels.ravel())
    assert measured["ndcg@10"] == pytest.approx(ranked["ndcg@10"])
    assert measured["ndcg@10"] == pytest.approx(ndcg_score(labels, cosines, k=10))
    assert measured["mrr@10"] == pytest.approx(ranked["mrr@10"])
    distinct = retrieval_metrics(queries, documents[:20], relevant := [{i: 1.0, 19 - i: 1.0} for i in range(20)])
    labels = np.array([[float(document in judged) for document in range(20)] for judged in relevant])
    ranked = ranking_metrics(cosines[:, :20].ravel(), np.repeat(np.arange(20), 20), labels.ravel())
    assert distinct["map@100"] == pytest.approx(ranked["map"])


@pytest.mark.parametrize("directions", [[0, 0, 0, 0, 0], [0, 1, 1, 1, 2], [1, 1, 0, 2, 2], [0, 0, 1, 1, 1]])
@pytest.mark.parametrize("judged", [{0: 1.0}, {1: 1.0, 3: 1.0}, {2: 3.0, 4: 1.0, 0: 1.0}])
@pytest.mark.parametrize("depth", [2, 3, 10])
def test_equal_documents_count_in_all_orders(directions, judged, depth, monkeypatch):
    """Each metric is the mean over all orders of documents with the same cosine, also across the last place."""
    monkeypatch.setattr(embedding, "SEARCHED", depth)
    wanted = []
    for order in itertools.permutations(range(5)):
        if all(directions[a] <= directions[b] for a, b in itertools.pairwise(order)):
            hits = np.array([document in judged for document in order], dtype=float)
            precisions = np.cumsum(hits) / np.arange(1, 6)
            first = np.array([judged.get(document, 0) for document in order]) @ (1 / np.log2(np.arange(2, 7)))
            best = sorted(judged.values(), reverse=True) @ (1 / np.log2(np.arange(2, 2 + len(judged))))
            average = (precisions * hits)[:depth].sum() / min(depth, len(judged))
            wanted.append((average, 1 / (1 + hits.argmax()), first / best))
    angles = np.array(directions) / 2
    lengths = np.arange(1, 6)[:, None]
    measured = retrieval_metrics([[1, 0]], lengths * np.stack([np.cos(angles), np.sin(angles)], 1), [judged])
    found = [measured[name] for name in ("map@100", "mrr@10", "ndcg@10")]
    if depth == 10:
        assert found == pytest.approx(np.mean(wanted, axis=0).tolist())
    assert found[0] == pytest.approx(np.mean(wanted, axis=0)[0])


def test_agreement_by_hand():
    """Four directions; the student swaps the second and the third text."""
    degrees = np.radians([0, 10, 30, 80])
    teacher = np.stack([np.cos(degrees), np.sin(degrees)], 1)
    measured = agreement_metrics(teacher[[0, 2, 1, 3]], teacher, k=1)
    assert all(type(value) is float for value in measured.values())
    # Distances of the teacher: 10 30 80 | 10 20 70 | 30 20 50 | 80 70 50; of the student: 30 10 80 | 30 20 50 |
    # 10 20 70 | 80 50 70. Ranks: 123 and 213 | 123 and 213 | 213 and 123 | 321 and 312.
    assert measured == {
        "cosine_to_teacher": pytest.approx((2 + 2 * np.cos(np.radians(20))) / 4),
        "overlap@1": 0.0,
        "spearmanr_to_teacher": pytest.approx(0.5),
    }


@pytest.mark.parametrize("rows", [1, 30, 64])
def test_agreement_against_scikit_learn(rows, monkeypatch):
    """In blocks of one row, and where the last block has fewer."""
    monkeypatch.setattr(embedding, "BLOCK", 1)
    monkeypatch.setattr(embedding, "MIN_ROWS", rows)
    teacher = random_vectors(80)
    own = random_vectors(80, seed=1, like=teacher)[:, :12]
    near = [
        NearestNeighbors(n_neighbors=11, metric="cosine").fit(vectors).kneighbors(vectors, return_distance=False)
        for vectors in (own, teacher)
    ]
    shared = [set(one) & set(other) - {row} for row, (one, other) in enumerate(zip(*near, strict=True))]
    cosines = [cosine_similarity(vectors) for vectors in (own, teacher)]
    correlations = [spearmanr(*(np.delete(matrix[row], row) for matrix in cosines)).statistic for row in range(80)]
    assert agreement_metrics(own, teacher) == {
        "overlap@10": pytest.approx(np.mean([len(texts) / 10 for texts in shared])),
        "spearmanr_to_teacher": pytest.approx(np.mean(correlations)),
    }
    padded = np.pad(own, ((0, 0), (0, 4)))
    assert agreement_metrics(padded, teacher) == {
        "cosine_to_teacher": pytest.approx(np.diag(cosine_similarity(padded, teacher)).mean()),
        **agreement_metrics(own, teacher),
    }


def test_correlations_over_a_sample(monkeypatch):
    """The same sample each time, as many others for each text, and near to the correlation over all."""
    teacher = random_vectors(300)
    own = random_vectors(300, seed=1, like=teacher)
    everything = agreement_metrics(own, teacher)
    monkeypatch.setattr(embedding, "NUM_OTHERS", 100)
    sampled = agreement_metrics(own, teacher)
    assert sampled == agreement_metrics(own, teacher)
    difference = sampled.pop("spearmanr_to_teacher") - everything.pop("spearmanr_to_teacher")
    assert 0 < abs(difference) < 0.02
    assert sampled == everything
    others = embedding._sample(300)
    numbers = np.arange(300)
    chosen = embedding._without_self(np.tile(numbers, (300, 1)), numbers, others)
    assert chosen.shape == (300, 100)
    assert not (chosen == numbers[:, None]).any()
    assert len(set(others)) == 101


def test_the_teacher_agrees_with_itself():
    """Also where texts are given twice."""
    vectors = random_vectors(40)[np.arange(40) // 3]
    assert agreement_metrics(vectors, 2 * vectors, k=4) == pytest.approx(
        {"cosine_to_teacher": 1.0, "overlap@4": 1.0, "spearmanr_to_teacher": 1.0}
    )


@given(seed=st.integers(0, 10**6), num_texts=st.integers(11, 40), width=st.integers(2, 8), levels=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_rotation_scale_and_order_change_nothing(seed, num_texts, width, levels):
    """Vectors of few different values, so that many texts tie."""
    generator = np.random.default_rng(seed)
    rotation = ortho_group.rvs(width, random_state=generator)
    own, teacher = generator.integers(-levels, levels + 1, (2, num_texts, width)) * 1.0
    own[:, 0] += 0.5
    teacher[:, 0] += 0.5
    order = generator.permutation(num_texts)
    lengths = generator.uniform(0.01, 100, (2, num_texts, 1))
    scores = generator.integers(0, 4, num_texts)
    relevant = [{int(generator.integers(num_texts)): 1.0, query: 2.0} for query in range(num_texts)]

    turned_own, turned_teacher = lengths * (np.stack([own, teacher]) @ rotation)
    assert similarity_metrics(turned_own[order], turned_teacher[order], scores[order]) == pytest.approx(
        similarity_metrics(own, teacher, scores)
    )
    assert agreement_metrics(turned_own[order], turned_teacher[order]) == pytest.approx(agreement_metrics(own, teacher))
    place = np.argsort(order)
    moved = [{int(place[document]): gain for document, gain in relevant[query].items()} for query in order]
    assert retrieval_metrics(turned_own[order], turned_teacher[order], moved) == pytest.approx(
        retrieval_metrics(own, teacher, relevant)
    )


def test_many_texts():
    """In blocks, with float16, tensors and a recall of a hundred documents."""
    documents = torch.tensor(random_vectors(2000)).half()
    measured = retrieval_metrics(documents.numpy()[:1500], documents, [{i: 1} for i in range(1500)])
    assert measured == {name: pytest.approx(1.0) for name in measured}
    assert "recall@100" in measured
    assert agreement_metrics(documents.bfloat16(), documents)["cosine_to_teacher"] > 0.999


def test_memory_is_bounded(monkeypatch):
    """All cosines of 1500 texts at a time would take 18 MB."""
    monkeypatch.setattr(embedding, "BLOCK", 2**16)
    monkeypatch.setattr(embedding, "MIN_ROWS", 1)
    vectors, relevant = random_vectors(1500, width=8), [{i: 1.0} for i in range(1500)]
    tracemalloc.start()
    try:
        retrieval_metrics(vectors, vectors, relevant)
        agreement_metrics(vectors, vectors)
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


ZERO = np.array([[1.0, 0.0], [0.0, 0.0]])
NAN = np.array([[1.0, 0.0], [0.0, np.nan]])
GOOD = np.eye(2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((GOOD, np.ones((3, 2)), [1, 2]), "There are 2 vectors_a, but 3 vectors_b: give one of each per text"),
        ((GOOD, np.ones((2, 3)), [1, 2]), "vectors_a have the width 2, but vectors_b have 3: compute both with the"),
        ((GOOD, ZERO, [1, 2]), "vectors_b are zero in 1 of 2 rows, first in row 1: a zero vector has no cosine"),
        ((NAN, GOOD, [1, 2]), "vectors_a have NaN or infinite values in 1 of 2 rows, first in row 1: run the model"),
        ((GOOD, GOOD, [1]), r"scores have the shape \[1\]: they must be one per pair, \[2\]"),
        ((GOOD, GOOD, [1, np.nan]), "scores have NaN or infinite values in 1 of 2 rows, first in row 1: remove these"),
        ((GOOD[:1], GOOD[:1], [1]), "There is only one pair: a correlation needs at least two"),
        ((GOOD[0], GOOD, [1, 2]), r"vectors_a have the shape \[2\]: they must be \[texts, width\], one row per text"),
        (([[1], [1, 2]], GOOD, [1, 2]), r"vectors_a must be numbers in \[texts, width\], with rows of equal length"),
    ],
)
def test_errors_of_similarity(pairs, message):
    with pytest.raises(ValueError, match=message):
        similarity_metrics(*pairs)


@pytest.mark.parametrize(
    ("documents", "relevant", "message"),
    [
        (np.ones((2, 3)), [{0: 1}] * 2, "query_vectors have the width 2, but document_vectors have 3"),
        (NAN, [{0: 1}] * 2, "document_vectors have NaN or infinite values in 1 of 2 rows, first in row 1"),
        (GOOD, [{0: 1}], "There are 2 query_vectors, but relevant has 1 queries"),
        (GOOD, [{0: 1}, {1: 0}], r"1 of 2 queries have no relevant document, number 1 \(from 0\): leave them out"),
        (GOOD, [{}, {}], r"2 of 2 queries have no relevant document, number 0, 1 \(from 0\)"),
        (GOOD, [{0: 1}, {2: 1}], r"relevant\[1\] names the document 2: it must be an index from 0 to 1, a row of"),
        (GOOD, [{"0": 1}] * 2, r"relevant\[0\] names the document '0': it must be an index"),
        (GOOD, [{0: 1}, {1: -1}], r"relevant\[1\]\[1\] is -1: a relevance must be a number of 0 or more"),
        (GOOD, [{0: 1}, {1: np.nan}], r"relevant\[1\]\[1\] is nan: a relevance must be a number of 0 or more"),
        (
            GOOD,
            [{0: 1}, [1]],
            r"relevant\[1\] is \[1\]: it must map indices of documents to relevances, as in {7: 1.0}",
        ),
    ],
)
def test_errors_of_retrieval(documents, relevant, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(GOOD, documents, relevant)


@pytest.mark.parametrize(
    ("vectors", "teacher", "k", "message"),
    [
        (GOOD, np.eye(3), 1, "There are 2 vectors, but 3 teacher_vectors: give one of each per text"),
        (GOOD, ZERO, 1, "teacher_vectors are zero in 1 of 2 rows, first in row 1"),
        (np.eye(10), np.eye(10), 10, r"k=10 nearest neighbours need .* at least k \+ 1 texts, but there are 10"),
        (GOOD, GOOD, 0, "k=0 nearest neighbours need k of 1 or more"),
    ],
)
def test_errors_of_agreement(vectors, teacher, k, message):
    with pytest.raises(ValueError, match=message):
        agreement_metrics(vectors, teacher, k)


def test_the_vectors_are_not_changed():
    vectors = torch.tensor(random_vectors(20))
    before = vectors.clone()
    agreement_metrics(vectors, vectors)
    assert torch.equal(vectors, before)


def test_examples_in_docstrings():
    assert doctest.testmod(embedding).failed == 0
