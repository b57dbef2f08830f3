"""Variants of texts."""

from hypothesis import given
from hypothesis import strategies as st

from hf_distill.data.variants import vary_texts

WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=3), max_size=12)


def test_a_part_with_some_other_words():
    texts = [" ".join(f"{letter}{number}" for number in range(20)) for letter in "abcdefghij"] * 20
    varied = [text.split() for text in vary_texts(texts)]
    assert all(10 <= len(own) <= 20 for own in varied)
    assert {len(own) for own in varied} == {*range(10, 21)}
    kept = total = 0
    for text, own in zip(texts, varied, strict=True):
        words = text.split()
        starts = [words.index(word) - place for place, word in enumerate(own) if word in words]
        start = max({*starts}, key=starts.count)
        kept += sum(word == before for word, before in zip(own, words[start:], strict=False))
        total += len(own)
    assert 0.83 < kept / total < 0.88  # 0.15 are replaced, sometimes by the same word


@given(st.lists(WORDS.map(" ".join), max_size=5), st.integers(0, 9))
def test_words_come_from_the_texts(texts, seed):
    varied = vary_texts(texts, seed)
    words = {word for text in texts for word in text.split()}
    assert len(varied) == len(texts)
    for text, own in zip(texts, varied, strict=True):
        assert {*own.split()} <= words
        if len(text.split()) < 4:
            assert own == text
    assert varied == vary_texts(texts, seed)


def test_example():
    """The example of the docstring."""
    assert vary_texts(["a slow start but a warm and funny ending"]) == ["start warm but a warm and funny"]
