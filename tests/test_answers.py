"""Windows are those of transformers, and the best answers those of a second, slow implementation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_distill.answers import ContextWindow, best_answers, split_context, tokens_of_answer

TEXT = "Der Zug nach Köln fährt um 8:15 von Gleis 3 ab, und  er hält nicht. 😀 Die Fahrt dauert zwei Stunden."


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with RoBERTa's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", cls_token="<s>", sep_token="</s>")


TOKENIZER = byte_level_tokenizer()


def windows_of(question, context, max_length, stride):
    return split_context(TOKENIZER.backend_tokenizer.encode(question, context), max_length, stride)


@given(
    question=st.integers(1, 10), context=st.integers(1, 120), max_length=st.integers(30, 60), stride=st.integers(0, 8)
)
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_transformers(question, context, max_length, stride):
    question, context = "q" * question, (TEXT * 2)[:context]
    expected = TOKENIZER(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    TOKENIZER.backend_tokenizer.no_truncation()
    windows = windows_of(question, context, max_length, stride)
    assert [window.ids for window in windows] == expected["input_ids"]
    assert [window.offsets for window in windows] == expected["offset_mapping"]
    assert [window.attention_mask for window in windows] == expected["attention_mask"]
    for number, window in enumerate(windows):
        inside = [token for token, sequence in enumerate(expected.sequence_ids(number)) if sequence == 1]
        assert inside == list(range(window.first, window.first + window.size))


def test_windows_by_hand():
    """The question and four special tokens leave room for six of the context's twelve tokens."""

    def parts(stride):
        return [(window.skipped, window.size) for window in windows_of("q", "123456789abc", 11, stride)]

    assert parts(0) == [(0, 6), (6, 6)]
    assert parts(2) == [(0, 6), (4, 6), (8, 4)]
    assert parts(100) == parts(3) == [(0, 6), (3, 6), (6, 6)]  # at most half of the tokens overlap


def test_a_question_that_is_too_long():
    assert len(windows_of("q" * 50, "abc", 57, 0)) == 1  # it fits
    with pytest.raises(ValueError, match=r"The question takes 44 of 57 tokens with its special tokens .* shorten"):
        windows_of("q" * 40, "x" * 100, 57, 0)
    with pytest.raises(ValueError, match="The context gives no tokens"):
        windows_of("q", "", 20, 0)


@given(
    max_length=st.integers(20, 60),
    stride=st.integers(0, 20),
    start=st.integers(0, len(TEXT) - 1),
    size=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_tokens_of_an_answer(max_length, stride, start, size):
    """The smallest run of tokens that has all characters of the answer, in each window that has them all."""
    end = min(start + size, len(TEXT))
    if not TEXT[start:end].strip():
        return  # this tokenizer gives no token for the space before a word
    for window, found in zip(
        windows := windows_of("q", TEXT, max_length, stride), tokens_of_answer(windows, start, end), strict=True
    ):
        inside = range(window.first, window.first + window.size)
        touching = [
            token for token in inside if max(window.offsets[token][0], start) < min(window.offsets[token][1], end)
        ]
        characters = {c for token in touching for c in range(*window.offsets[token])}
        if found is None:
            assert not characters >= set(range(start, end))
        else:
            assert found == (touching[0], touching[-1])


def test_an_answer_without_tokens():
    windows = windows_of("q", "ab", 20, 0)
    with pytest.raises(ValueError, match="gives no tokens for the answer"):
        tokens_of_answer(windows, 5, 7)


def slow_best(windows, start_logits, end_logits, context, max_tokens, threshold):
    """All answers and their probabilities by start and end, and the decision, one by one in Python."""
    spans, starts, ends, nulls, position = {}, {}, {}, [], 0
    for window in windows:
        nulls.append(float(start_logits[position]) + float(end_logits[position]))
        inside = range(window.first, window.first + window.size)
        inside = [token for token in inside if context[slice(*window.offsets[token])].strip()]
        for i in inside:
            place = window.skipped + i
            starts[place] = max(starts.get(place, -math.inf), float(start_logits[position + i]))
            ends[place] = max(ends.get(place, -math.inf), float(end_logits[position + i]))
            for j in inside:
                if i <= j < i + max_tokens:
                    key = window.offsets[i][0], window.offsets[j][1]
                    logit = float(start_logits[position + i]) + float(end_logits[position + j])
                    spans[key] = max(spans.get(key, -math.inf), logit)
        position += len(window)
    null = min(nulls)
    total = sum(map(math.exp, starts.values())) * sum(map(math.exp, ends.values()))
    total += math.exp(null) if threshold is not None else 0
    best = max(spans, key=spans.__getitem__)
    if threshold is not None and null - spans[best] > threshold:
        best = 0, 0
    return {key: math.exp(logit) / total for key, logit in spans.items()}, math.exp(null) / total, best


@given(
    seed=st.integers(0, 10**6),
    max_length=st.integers(20, 130),
    stride=st.integers(0, 20),
    max_tokens=st.integers(1, 40),
    threshold=st.none() | st.floats(-3, 3),
)
@settings(max_examples=40, deadline=None)
def test_best_answers(seed, max_length, stride, max_tokens, threshold):
    windows = windows_of("q", TEXT, max_length, stride)
    generator = np.random.default_rng(seed)
    start_logits, end_logits = generator.normal(size=(2, sum(map(len, windows)))).astype(np.float32) * 2
    arguments = windows, start_logits, end_logits, TEXT, max_tokens, threshold
    scores, null, best = slow_best(*arguments)
    answers = best_answers(*arguments, top_k=None)
    for answer in answers:
        key = answer["start"], answer["end"]
        assert answer["answer"] == TEXT[slice(*key)]
        assert answer["score"] == pytest.approx(null if key == (0, 0) else scores[key], rel=1e-9)
    assert {(own["start"], own["end"]) for own in answers} - {(0, 0)} == set(scores)
    assert len(answers) == len(scores) + (threshold is not None)
    assert (answers[0]["start"], answers[0]["end"]) == best
    assert best_answers(*arguments) == answers[:1]
    assert best_answers(*arguments, top_k=3) == answers[:3]
    spans = [answer["score"] for answer in answers if answer["answer"]]
    assert spans == sorted(spans, reverse=True)


def test_no_answer_needs_more_than_the_threshold():
    (window,) = windows_of("q", "ab", 20, 0)
    logits = np.zeros(len(window))
    for null, threshold, expected in [(0.0, 0.0, "a"), (0.1, 0.0, ""), (0.1, 0.2, "a"), (9.0, None, "a"), (0, -1, "")]:
        logits[0] = null
        (best,) = best_answers([window], logits, np.zeros(len(window)), "ab", threshold=threshold)
        assert best["answer"] == expected


def test_no_answer_comes_last_if_it_is_the_least_likely():
    (window,) = windows_of("q", "ab", 20, 0)
    logits = np.arange(len(window), dtype=float)
    answers = best_answers([window], logits, logits, "ab", 1, 0.0, None)
    assert [own["answer"] for own in answers] == ["b", "a", ""]
    assert best_answers([window], logits, logits, "ab", 1, 0.0, 2) == answers[:2]


def test_tokens_without_text_are_no_answers():
    tokens = {name: [0] * 4 for name in ("ids", "type_ids", "attention_mask", "special_tokens_mask")}
    window = ContextWindow(**tokens, offsets=[(0, 0), (0, 1), (1, 4), (4, 4)], first=1, size=3, skipped=0)
    answers = best_answers([window], np.array([0, 9, 1, 9.0]), np.array([0, 9, 1, 9.0]), "  ab", top_k=None)
    assert answers == [{"answer": "ab", "score": 1.0, "start": 2, "end": 4}]
    with pytest.raises(ValueError, match="The context gives no tokens"):
        best_answers([window], np.zeros(4), np.zeros(4), "    ")
