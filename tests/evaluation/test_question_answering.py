"""Exact match and F1 against a second implementation of SQuAD's official script, and by hand."""

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.evaluation.question_answering import answer_metrics

WORDS = ["the", "a", "An", "Paris", "paris,", "St.", "house", "1,000", "1000", "it's", "!", "über", "  "]
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)


def normalized(answer):
    answer = "".join(character for character in answer.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", answer).split()


def official(predictions, answers):
    """As https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e, in float64."""
    exact, f1 = [], []
    for prediction, correct in zip(predictions, answers, strict=True):
        own = normalized(prediction)
        gold = [words for words in map(normalized, correct) if words] or [[]]
        exact.append(max(float(own == words) for words in gold))
        scores = []
        for words in gold:
            same = sum((Counter(own) & Counter(words)).values())
            if not own or not words:
                scores.append(float(own == words))
            else:
                scores.append(2 * same / (len(own) + len(words)))
        f1.append(max(scores))
    return np.array(exact), np.array(f1)


@given(st.lists(st.tuples(ANSWERS, st.lists(ANSWERS, max_size=3)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_the_official_script(pairs):
    predictions, answers = zip(*pairs, strict=True)
    exact, f1 = official(predictions, answers)
    expected = {"exact_match": exact.mean(), "f1": f1.mean()}
    has = np.array([bool(correct) for correct in answers])
    if 0 < has.sum() < len(has):
        expected |= {"answerable_exact_match": exact[has].mean(), "answerable_f1": f1[has].mean()}
        expected["unanswerable_accuracy"] = exact[~has].mean()
    assert answer_metrics(predictions, answers) == pytest.approx(expected, abs=1e-6)


def test_by_hand():
    metrics = answer_metrics(
        ["in Paris", "", "Rome"], [["Paris", "France"], [], []], teacher=["Paris", "the", "in Rome"]
    )
    assert metrics == pytest.approx(
        {
            "exact_match": 1 / 3,
            "f1": (2 / 3 + 1 + 0) / 3,
            "answerable_exact_match": 0.0,
            "answerable_f1": 2 / 3,
            "unanswerable_accuracy": 0.5,
            "agreement": 1 / 3,
            "f1_to_teacher": (2 / 3 + 1 + 2 / 3) / 3,
        }
    )
    assert set(answer_metrics(["a b"], [["b"]])) == {"exact_match", "f1"}


def test_nothing_to_measure():
    for arguments in (([], []), (["a"], []), (["a"], [["a"]], ["a", "b"])):
        with pytest.raises(ValueError, match="Give at least one question, and one answer for each"):
            answer_metrics(*arguments)
