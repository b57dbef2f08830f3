"""Word and character error rates have the values of their definition, counted here by hand."""

import random

import pytest

from hf_distill import transcription_metrics

REFERENCES = ["The cat sat down.", "Yes, [music] we can!"]
PREDICTIONS = ["the cat sat", "Yes we can, can!"]


def edits(one, other):
    """Levenshtein distance of two sequences."""
    previous = list(range(len(other) + 1))
    for row, item in enumerate(one, start=1):
        current = [row]
        for column, wanted in enumerate(other, start=1):
            change = previous[column - 1] + (item != wanted)
            current.append(min(change, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def test_error_rates_by_hand():
    measured = transcription_metrics(PREDICTIONS, REFERENCES)
    assert measured.keys() == {"wer", "wer_normalized", "cer"}
    # "The" is substituted and "down." deleted; "Yes,", "[music]" and "we" are substituted
    assert measured["wer"] == pytest.approx((2 + 3) / 8)
    # "down" is deleted, and a second "can" inserted
    assert measured["wer_normalized"] == pytest.approx((1 + 1) / 7)


def test_random_texts():
    draw = random.Random(0)
    texts = [[" ".join(draw.choices("ab cd", k=9)).strip() for _ in range(20)] for _ in range(2)]
    texts = [[" ".join(["x", *text.split()]) for text in own] for own in texts]
    measured = transcription_metrics(*texts)
    pairs = list(zip(*texts, strict=True))
    words = sum(edits(own.split(), other.split()) for own, other in pairs)
    assert measured["wer"] == pytest.approx(words / sum(len(other.split()) for _, other in pairs))
    characters = sum(edits(own, other) for own, other in pairs)
    assert measured["cer"] == pytest.approx(characters / sum(len(other) for _, other in pairs))


def test_the_teachers_transcripts():
    measured = transcription_metrics(PREDICTIONS, teacher_predictions=["the cat sat", "Yes we can!"])
    assert measured == {"wer_to_teacher": pytest.approx(1 / 6), "same_as_teacher": 0.5}


def test_errors():
    with pytest.raises(ValueError, match="There are 2 predictions, but 1 references: give one for each prediction"):
        transcription_metrics(PREDICTIONS, ["yes"])
    with pytest.raises(ValueError, match="The references have no words, so no error rate can be given"):
        transcription_metrics(["yes"], [" "])
    with pytest.raises(ValueError, match="The references have no words"):
        transcription_metrics(["yes"], ["[music]"])
