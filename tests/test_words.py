"""Words found in texts, their tokens in overlapping windows, and the entities they form."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.words import deciding_tokens, group_words, labels_at, split_words, token_of_word, words_read


@pytest.mark.parametrize(
    ("text", "marks", "spaces"),
    [
        ("Jane Roe-Poe (U.S.)", "Jane Roe - Poe ( U . S . )", "Jane Roe-Poe ( U.S. )"),
        ("J. Smith's dog, e.g. Rex.", "J . Smith ' s dog , e . g . Rex .", "J. Smith 's dog , e.g. Rex ."),
        ("Rome/Paris: $1,200.50!", "Rome / Paris : $ 1 , 200 . 50 !", "Rome/Paris : $ 1,200.50 !"),
        ("'s ...", "' s . . .", "' s . . ."),
        ("हिन्दी Café", "हिन्दी Café", "हिन्दी Café"),
        ("猫である。A1 กิน", "猫 で あ る 。 A1 กิ น", "猫 で あ る 。 A1 กิ น"),
        (" \n ", "", ""),
    ],
)
def test_words(text, marks, spaces):
    for rule, expected in (("marks", marks), ("spaces", spaces)):
        assert [text[start:end] for start, end in split_words(text, rule)] == expected.split()


def test_words_end_at_boundaries():
    text = "Parisbased firm"
    assert split_words(text, boundaries=[15, 5, 0, 5, 11]) == [(0, 5), (5, 10), (11, 15)]


@settings(max_examples=40)
@given(text=st.text(), rule=st.sampled_from(["marks", "spaces"]), boundaries=st.lists(st.integers(0, 20)))
def test_words_cover_everything_but_spaces(text, rule, boundaries):
    words = split_words(text, rule, boundaries)
    assert all(start < end for start, end in words)
    assert all(one[1] <= other[0] for one, other in pairwise(words))
    inside = {position for start, end in words for position in range(start, end)}
    assert {character for position, character in enumerate(text) if position not in inside} <= set(
        filter(str.isspace, text)
    )
    assert not any(start < cut < end for cut in boundaries for start, end in words)


def window(*offsets):
    """Tokens with one special token on each side."""
    return SimpleNamespace(offsets=[(0, 0), *offsets, (0, 0)], special_tokens_mask=[1, *[0] * len(offsets), 1])


def test_first_token_of_each_word():
    tokens = window((0, 2), (2, 4), (4, 6), (5, 6), (7, 12))  # "ab", "cd", " e" and its second byte, and two words
    assert token_of_word(tokens, [0, 5, 7, 9, 20]) == {0: 1, 1: 3, 2: 5, 3: 5}


def test_the_window_with_the_most_context_decides():
    """Seven words of one token, in windows of four that share two. The first of two equal windows wins."""
    offsets = [(number, number + 1) for number in range(7)]
    windows = [window(*offsets[:4]), window(*offsets[2:6]), window(*offsets[4:])]
    decided = deciding_tokens(windows, [*range(7), 30])
    assert decided == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (2, 3), None]


@given(num_tokens=st.integers(1, 40), size=st.integers(2, 9), shared=st.integers(0, 8))
def test_every_word_is_decided_with_its_best_context(num_tokens, size, shared):
    shared = min(shared, size - 1)
    offsets = [(2 * number, 2 * number + 1) for number in range(num_tokens)]
    starts = [0]
    while starts[-1] + size < num_tokens:
        starts.append(starts[-1] + size - shared)
    windows = [window(*offsets[start : start + size]) for start in starts]
    decided = deciding_tokens(windows, [start for start, _ in offsets])
    for word, (number, token) in enumerate(decided):
        contexts = {}
        for index, start in enumerate(starts):
            end = min(start + size, num_tokens)
            if start <= word < end:
                contexts[index] = min(word - start, end - 1 - word)
        assert contexts[number] == max(contexts.values())
        assert starts[number] + token - 1 == word


NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_a_word_within_a_token_continues_its_entity():
    tokens = [(0, 1), (0, 1), (0, 2), None, (1, 0)]
    assert labels_at(tokens, [[0, 1, 2], [3]], NAMES) == ["B-LOC", "I-LOC", "I-LOC", None, "B-PER"]


@pytest.mark.parametrize(
    ("labels", "names", "groups"),
    [
        ("B-PER I-PER B-PER O I-PER", NAMES, [("PER", 0, 1), ("PER", 2, 2), ("PER", 4, 4)]),
        ("I-PER I-LOC I-LOC", NAMES, [("PER", 0, 0), ("LOC", 1, 2)]),
        ("B-PER I-LOC O O", NAMES, [("PER", 0, 0), ("LOC", 1, 1)]),
        ("PER PER O LOC", ["O", "PER", "LOC"], [("PER", 0, 1), ("LOC", 3, 3)]),
        ("NN NN VB", ["NN", "VB"], [("NN", 0, 0), ("NN", 1, 1), ("VB", 2, 2)]),
    ],
)
def test_entities(labels, names, groups):
    assert group_words(labels.split(), names) == groups


def test_words_outside():
    assert group_words(["B-PER", None, "I-PER"], NAMES) == [("PER", 0, 0), ("PER", 2, 2)]


def test_rule_of_a_model():
    assert words_read({"spans_column": "entities"}) == "marks"
    assert words_read({"tokens_column": "tokens", "spans_column": None}) == "spaces"
