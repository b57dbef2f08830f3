"""Rows of windows with the tokens of the answers, by hand and against transformers."""

import pytest
from datasets import Dataset

from hf_distill.data.question_tokens import QuestionTokenizer, encode_questions
from hf_distill.data.questions import FEATURES
from tests.conftest import make_text_tokenizer
from tests.question_answering import make_question_rows, make_question_tokenizer


def encode(rows, tokenizer=None, max_length=9, stride=1):
    return encode_questions(
        Dataset.from_list(rows, FEATURES), tokenizer or make_question_tokenizer(), max_length, stride
    )


def row(context, answers, starts, question="w5"):
    return {"question": question, "context": context, "answers": answers, "starts": starts}


def positions(rows):
    return list(zip(rows["start_positions"], rows["end_positions"], strict=True))


CONTEXT = "w10 w11 w12 w13 w14 w15 w16"
"""Seven tokens. A window of 9 tokens has 5 of them."""


def test_windows_and_labels():
    rows = encode([row(CONTEXT, ["w14 w15", "w10"], [16, 0])])
    assert rows["input_ids"][:] == [[1, 5, 2, 10, 11, 12, 13, 14, 2], [1, 5, 2, 14, 15, 16, 2]]
    assert rows["token_type_ids"][:] == [[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert positions(rows) == [(0, 0), (3, 4)]  # the first window has only a part of the answer
    assert set(rows.column_names) == {
        *("input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions")
    }


def test_no_answer_and_no_label():
    assert positions(encode([row(CONTEXT, [], [])])) == [(0, 0)] * 2
    assert positions(encode([row(CONTEXT, None, None)])) == [(-100, -100)] * 2
    assert positions(encode([row(f"{CONTEXT} ", [" "], [27])])) == [(-100, -100)] * 2  # no token
    assert positions(encode([row(CONTEXT, ["1"], [1])])) == [(3, 3), (0, 0)]  # a part of a token


def test_a_tokenizer_without_special_tokens_between():
    """The first token of the question says that there is no answer."""
    tokenizer = make_text_tokenizer()
    rows = encode([row(CONTEXT, [], []), row(CONTEXT, ["w10"], [0])], tokenizer)
    assert rows[0]["input_ids"] == [5, 10, 11, 12, 13, 14, 15, 16]
    assert positions(rows) == [(0, 0), (1, 1)]


def test_rows_of_transformers():
    """The windows, and labels found as in the example script of transformers, from offsets."""
    tokenizer, rows = make_question_tokenizer(), make_question_rows(12)
    encoded = encode(rows, tokenizer, 20, 5)
    expected = tokenizer(
        [own["question"] for own in rows],
        [own["context"] for own in rows],
        truncation="only_second",
        max_length=20,
        stride=5,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert encoded[name][:] == expected[name]
    labels = []
    for number, offsets in enumerate(expected["offset_mapping"]):
        own = rows[expected["overflow_to_sample_mapping"][number]]
        inside = [token for token, sequence in enumerate(expected.sequence_ids(number)) if sequence == 1]
        start = own["starts"][0] if own["starts"] else -1
        first = [token for token in inside if offsets[token][0] == start]
        labels.append((first[0], first[0]) if first else (0, 0))
    assert positions(encoded) == labels
    assert any(label != (0, 0) for label in labels)


def test_bad_rows():
    with pytest.raises(ValueError, match="Row 2, 'w5 w5 w5 w5 w5 w5 w5 ': The question takes 10 of 12 tokens"):
        encode([row("w5", [], []), row(CONTEXT, [], [], "w5 " * 7)], max_length=12)
    slow = type("Slow", (), {"is_fast": False, "model_input_names": []})()
    with pytest.raises(ValueError, match="Slow is a slow tokenizer: use a fast tokenizer"):
        QuestionTokenizer(slow, 9, 1)


def test_the_tokenizer_does_not_change():
    tokenizer = make_question_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    encode([row(CONTEXT, [], [])], tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
