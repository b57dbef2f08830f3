"""Metrics of tagged words, compared with a second implementation and with what the example scripts use."""

import numpy as np
import pytest
import seqeval.metrics

from hf_distill.evaluation.tagging import tagging_counts, tagging_fidelity, tagging_metrics

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def entities_by_hand(labels):
    """As conlleval.pl reads tags: (kind, first, last) of each entity."""
    found, open_kind, first = [], None, None
    for place, label in enumerate([*labels, "O"]):
        kind = None if label == "O" else label[2:]
        if open_kind is not None and (kind != open_kind or label[0] == "B"):
            found.append((open_kind, first, place - 1))
            open_kind = None
        if kind is not None and open_kind is None:
            open_kind, first = kind, place
    return found


def random_tags(seed, num_texts=40):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 15, num_texts)
    return [
        [NAMES[number] for number in generator.choice(5, length, p=[0.4, 0.2, 0.1, 0.1, 0.2])] for length in lengths
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_entities(seed):
    references = random_tags(seed)
    guesses = random_tags(seed + 10, 40)
    generator = np.random.default_rng(seed)
    predictions = [
        [label if generator.random() < 0.7 else other for label, other in zip(own, others * 15, strict=False)]
        for own, others in zip(references, guesses, strict=True)
    ]
    metrics = tagging_metrics(predictions, references, NAMES)
    for kind in (None, "LOC", "PER"):
        found, correct = (
            {
                (text, *own)
                for text, labels in enumerate(tags)
                for own in entities_by_hand(labels)
                if kind in (None, own[0])
            }
            for tags in (predictions, references)
        )
        precision, recall = len(found & correct) / len(found), len(found & correct) / len(correct)
        f1 = 2 * precision * recall / (precision + recall)
        assert metrics["f1" if kind is None else f"f1_{kind}"] == pytest.approx(f1, abs=1e-12)
        if kind is None:
            assert (metrics["precision"], metrics["recall"]) == (pytest.approx(precision), pytest.approx(recall))
    pairs = [pair for own in zip(predictions, references, strict=True) for pair in zip(*own, strict=True)]
    assert metrics["accuracy"] == pytest.approx(np.mean([one == other for one, other in pairs]))
    # What run_ner.py of transformers reports, by `evaluate.load("seqeval")`
    assert metrics["f1"] == pytest.approx(seqeval.metrics.f1_score(references, predictions))
    assert metrics["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(references, predictions))


def test_unknown_and_unread_words():
    references = [["B-PER", None, "O"], [None]]
    metrics = tagging_metrics([["B-PER", "I-PER", None], ["O"]], references, NAMES)
    assert metrics == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0, "f1_PER": 1.0}
    nothing = tagging_metrics([["O"]], [["O"]], NAMES)
    assert nothing == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}


def test_plain_tags():
    """F1 of NN is 2/3, of VB 1 / 2; JJ occurs nowhere, and the word that was not read is wrong."""
    references, predictions = [["NN", "VB", "VB"], ["NN"]], [["NN", "NN", "VB"], [None]]
    metrics = tagging_metrics(predictions, references, ["JJ", "NN", "VB"])
    assert metrics == {"accuracy": 0.5, "f1": pytest.approx((0.5 + 2 / 3) / 2)}


def test_fidelity():
    teacher, student = [["B-PER", "I-PER", "O", None]], [["B-PER", "O", "O", "O"]]
    assert tagging_fidelity(student, teacher, NAMES) == {"agreement": 0.75, "f1_to_teacher": 0.0}
    assert tagging_fidelity([["NN", "VB"]], [["NN", "NN"]], ["NN", "VB"]) == {"agreement": 0.5}


def test_bad_input():
    with pytest.raises(ValueError, match="predictions for 1 texts, but labels for 2"):
        tagging_metrics([["O"]], [["O"], ["O"]], NAMES)
    with pytest.raises(ValueError, match="Text 0 has 1 predictions, but 2 labels"):
        tagging_metrics([["O"]], [["O", "O"]], NAMES)
    with pytest.raises(ValueError, match="No word has a known label"):
        tagging_metrics([["O"]], [[None]], NAMES)


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
def test_counts_give_the_metric_of_any_texts(metric):
    references, predictions = random_tags(2), random_tags(2)
    generator = np.random.default_rng(0)
    for own, others in zip(predictions, random_tags(7, 40), strict=True):
        for place in np.flatnonzero(generator.random(len(own)) < 0.3):
            own[place] = others[place % len(others)]
    references[3][0] = None  # unknown
    counts = tagging_counts(metric, predictions, references, NAMES)
    assert counts.shape == (40, 2)
    for _ in range(5):
        drawn = generator.integers(0, 40, 40)
        texts = [[own[text] for text in drawn] for own in (predictions, references)]
        first, second = counts[drawn].sum(0)
        assert first / second == pytest.approx(tagging_metrics(*texts, NAMES)[metric])


def test_plain_tags_have_no_counts_of_f1():
    assert tagging_counts("f1", [["NOUN"]], [["VERB"]], ["NOUN", "VERB"]) is None
    assert tagging_counts("accuracy", [["NOUN"]], [["VERB"]], ["NOUN", "VERB"]).tolist() == [[0, 1]]
