"""Metrics of rankings: by hand, against torchmetrics and all orders of equal scores, and errors."""

import doctest
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torchmetrics.retrieval import RetrievalMAP, RetrievalMRR, RetrievalNormalizedDCG

from hf_distill import ranking_metrics
from hf_distill.evaluation import ranking

OF_LABELS = {"ndcg@10", "mrr@10", "map"}


def random_rows(num_rows=300, num_queries=20, seed=0):
    generator = np.random.default_rng(seed)
    scores, teacher = generator.normal(size=num_rows), generator.normal(size=num_rows)
    return scores, teacher, generator.integers(0, num_queries, num_rows), generator.integers(0, 4, num_rows)


def test_by_hand():
    """Query 0: the relevant document is second of three. Query 1: first of two. Rows are mixed."""
    scores, groups, labels = [0.1, 0.9, 5.0, 0.5, 4.0], [0, 0, 1, 0, 1], [0, 0, 1, 1, 0]
    measured = ranking_metrics(scores, groups, labels, teacher_scores=[0.2, 0.1, 3.0, 0.9, 2.0])
    assert all(type(value) is float for value in measured.values())
    assert measured == {
        "ndcg@10": pytest.approx((1 / np.log2(3) + 1) / 2),
        "mrr@10": pytest.approx((1 / 2 + 1) / 2),
        "map": pytest.approx((1 / 2 + 1) / 2),
        "spearmanr_to_teacher": pytest.approx((-0.5 + 1) / 2),
        "agreement": 0.5,
    }


@pytest.mark.parametrize("relevant", [1, 2])
def test_against_torchmetrics(relevant):
    """Without equal scores both agree. torchmetrics ignores documents with a negative score, so it gets probabilities.

    Relevance is 0 or 1, or has grades.
    """
    scores, _, groups, labels = random_rows()
    labels = (labels == 3) * 1 if relevant == 1 else labels
    known = np.isin(groups, np.unique(groups[labels > 0]))
    inputs = torch.tensor(scores[known]).sigmoid(), torch.tensor(labels[known]), torch.tensor(groups[known])
    binary = inputs[0], inputs[1] > 0, inputs[2]
    measured = ranking_metrics(scores, groups, labels)
    assert measured == {
        "ndcg@10": pytest.approx(RetrievalNormalizedDCG(top_k=10)(*inputs[:2], indexes=inputs[2]).item(), abs=1e-6),
        "mrr@10": pytest.approx(RetrievalMRR(top_k=10)(*binary[:2], indexes=binary[2]).item(), abs=1e-6),
        "map": pytest.approx(RetrievalMAP()(*binary[:2], indexes=binary[2]).item(), abs=1e-6),
    }


@pytest.mark.parametrize("scores", [[1, 1, 1, 1], [2, 1, 1, 1], [2, 2, 1, 1], [1, 1, 2, 1], [0, 1, 1, 2]])
@pytest.mark.parametrize("labels", [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 3, 1]])
def test_equal_scores_count_in_all_orders(scores, labels):
    """A model whose scores are all the same gains nothing from the order of the rows."""
    ranks, gains = [], []
    discounts = 1 / np.log2(np.arange(4) + 2)
    for order in itertools.permutations(range(4)):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            ranked = np.array(labels)[list(order)]
            ranks.append(1 / (1 + np.flatnonzero(ranked)[0]))
            gains.append(ranked @ discounts / (np.sort(labels)[::-1] @ discounts))
    measured = ranking_metrics(scores, [0] * 4, labels)
    assert measured["mrr@10"] == pytest.approx(np.mean(ranks))
    assert measured["ndcg@10"] == pytest.approx(np.mean(gains))


def test_only_the_first_ten_count():
    labels = [0] * 10 + [1]
    low = ranking_metrics(np.arange(11, 0, -1), [0] * 11, labels)
    assert (low["mrr@10"], low["ndcg@10"], low["map"]) == (0.0, 0.0, pytest.approx(1 / 11))
    tied = ranking_metrics(np.zeros(11), [0] * 11, labels)["mrr@10"]
    assert tied == pytest.approx(sum(1 / place for place in range(1, 11)) / 11)


def test_queries_that_do_not_count():
    """Without a relevant document, or with unknown relevance. A single document is in its best place."""
    scores, groups = [1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 2, 2]
    measured = ranking_metrics(scores, groups, [0, 0, 1, 1, np.nan])
    assert measured == {"ndcg@10": 1.0, "mrr@10": 1.0, "map": 1.0}
    both = ranking_metrics(scores, groups, [np.nan] * 5, teacher_scores=scores)
    assert both == {"spearmanr_to_teacher": pytest.approx(1.0), "agreement": 1.0}


def test_fidelity():
    scores, teacher, groups, _ = random_rows(500, 30)
    scores += teacher
    correlations, overlaps, same = [], [], []
    for query in np.unique(groups):
        own, other = scores[groups == query], teacher[groups == query]
        correlations.append(np.corrcoef(rankdata(own), rankdata(other))[0, 1])
        same.append(own.argmax() == other.argmax())
        if len(own) > 10:
            overlaps.append(np.sum((own >= np.sort(own)[-10]) & (other >= np.sort(other)[-10])) / 10)
    assert 0 < len(overlaps) < len(same)
    assert ranking_metrics(scores, groups, teacher_scores=teacher) == {
        "spearmanr_to_teacher": pytest.approx(np.mean(correlations)),
        "agreement": pytest.approx(np.mean(same)),
        "overlap@10": pytest.approx(np.mean(overlaps)),
    }
    constant = ranking_metrics(np.zeros(4), [0, 0, 0, 0], teacher_scores=[1, 2, 3, 4])
    assert constant["spearmanr_to_teacher"] == 0.0


def test_logits_with_a_column():
    scores, teacher, groups, labels = random_rows(40, 4)
    columns = ranking_metrics(scores[:, None], groups, labels, teacher_scores=teacher[:, None])
    assert columns == ranking_metrics(scores, groups, labels, teacher_scores=teacher)
    assert columns.keys() == OF_LABELS | {"spearmanr_to_teacher", "agreement"} | ({"overlap@10"} & columns.keys())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scores": [[1.0, 2.0], [3.0, 4.0]]},
            r"scores have the shape \[2, 2\]: they must be one number per row, \[2\]",
        ),
        ({"scores": [1.0, np.nan]}, "scores have NaN or infinite values"),
        ({"labels": [1.0]}, r"labels have the shape \[1\]: they must be one number per row, \[2\]"),
        ({"labels": [1.0, -1.0]}, "labels must be relevances of 0 or more, but one is -1"),
        ({"labels": [0.0, 0.0]}, "Nothing to measure: give teacher_scores, or labels with a relevant document"),
        ({"labels": None}, "Nothing to measure"),
        ({"teacher_scores": [1.0]}, r"teacher_scores have the shape \[1\]"),
        ({"teacher_scores": [1.0, np.inf]}, "teacher_scores have NaN or infinite values"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(**{"scores": [1.0, 2.0], "groups": [0, 0], "labels": [1.0, 0.0], **changes})


def test_example_in_the_docstring():
    assert doctest.testmod(ranking).failed == 0
