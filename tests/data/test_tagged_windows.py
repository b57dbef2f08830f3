"""Labels at the first token of each word, in windows that are those of a transformers tokenizer."""

from itertools import pairwise

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelOffsets
from tokenizers.trainers import BpeTrainer
from transformers import BertTokenizer, PreTrainedTokenizerFast

from hf_distill.data.tagged_windows import encode_tagged_words
from tests.conftest import make_text_tokenizer, make_texts

TEXT = "unhappy cats... sat 😀 here"
STARTS = [0, 8, 12, 13, 14, 16, 20, 22]
LABELS = [1, 2, 3, 4, 5, 6, 7, 8]


def word_pieces():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##happy", "cat", "##s", ".", "sat", "here", "##re", "he"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def bytes_with_spaces(trim_offsets):
    """Tokens may begin with a space, `...` is one token, and an emoji is four."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = ByteLevelOffsets(trim_offsets=trim_offsets)
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), special_tokens=["<pad>"])
    tokenizer.train_from_iterator(["unhappy cats... sat here ..."] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def rows_of(texts, starts, labels):
    ends = [[start + 1 for start in own] for own in starts]
    return Dataset.from_dict({"text": texts, "starts": starts, "ends": ends, "labels": labels})


def test_word_pieces():
    (row,) = encode_tagged_words(rows_of([TEXT], [STARTS], [LABELS]), word_pieces(), 20, 0)
    tokens = word_pieces().convert_ids_to_tokens(row["input_ids"])
    assert list(zip(tokens, row["labels"], strict=True)) == [
        ("[CLS]", -100),
        ("un", 1),
        ("##happy", -100),
        ("cat", 2),
        ("##s", -100),
        (".", 3),
        (".", 4),
        (".", 5),
        ("sat", 6),
        ("[UNK]", 7),
        ("here", 8),
        ("[SEP]", -100),
    ]
    assert row["token_type_ids"] == [0] * 12


def test_given_words_have_the_labels_of_the_example_script():
    """As `tokenize_and_align_labels` of run_ner.py in transformers, which passes lists of words."""
    words, labels = ["unhappy", "cats", ".", "he", "sat", "here"], [1, 2, 0, 3, 0, 4]
    starts = [0, 8, 13, 15, 18, 22]
    (row,) = encode_tagged_words(rows_of([" ".join(words)], [starts], [labels]), word_pieces(), 20, 0)
    expected = word_pieces()([words], is_split_into_words=True)
    of_tokens, before = [], None
    for word in expected.word_ids(0):
        of_tokens.append(-100 if word is None or word == before else labels[word])
        before = word
    assert (row["input_ids"], row["labels"]) == (expected["input_ids"][0], of_tokens)


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_bytes(trim_offsets):
    tokenizer = bytes_with_spaces(trim_offsets)
    (row,) = encode_tagged_words(rows_of([TEXT], [STARTS], [LABELS]), tokenizer, 20, 0)
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens[:4] == ["unhappy", "Ġcats", "...", "Ġsat"]
    assert row["labels"][:4] == [1, 2, 3, 6]  # the first of the three words in "..."
    assert [label for label in row["labels"] if label != -100] == [1, 2, 3, 6, 7, 8]
    assert "token_type_ids" not in row


def test_windows_are_those_of_transformers():
    tokenizer, texts = make_text_tokenizer(), make_texts(12, 0, 60)
    starts = [[place for place in range(len(text)) if place == 0 or text[place - 1] == " "] for text in texts]
    labels = [list(range(len(own))) for own in starts]
    rows = encode_tagged_words(rows_of(texts, starts, labels), tokenizer, 12, 4)
    expected = tokenizer(texts, truncation=True, max_length=12, stride=4, return_overflowing_tokens=True)
    assert rows["input_ids"][:] == expected["input_ids"]
    assert rows["attention_mask"][:] == expected["attention_mask"]
    assert len(rows) > 2 * len(texts)
    by_text = [
        [own for own, text in zip(rows, expected["overflow_to_sample_mapping"], strict=True) if text == number]
        for number in range(12)
    ]
    for number, windows in enumerate(by_text):
        inside = [window["labels"][1:-1] for window in windows]
        assert inside[0] + [label for own in inside[1:] for label in own[4:]] == labels[number]
        assert all(own[:4] == before[-4:] for before, own in pairwise(inside))


@pytest.mark.parametrize(
    ("max_length", "stride", "message"),
    [
        (12, 10, r"stride=10 must be at least 0 and below the 10 tokens of text that max_length=12 leaves, such as 3"),
        (12, -1, r"stride=-1 must be at least 0"),
        (2, 0, r"max_length=2 leaves no room for text: the tokenizer adds 2 special tokens, so use at least 3"),
    ],
)
def test_bad_windows(max_length, stride, message):
    with pytest.raises(ValueError, match=message):
        encode_tagged_words(rows_of(["w5"], [[0]], [[1]]), make_text_tokenizer(), max_length, stride)


def test_slow_tokenizers():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow is a slow tokenizer"):
        encode_tagged_words(rows_of(["w5"], [[0]], [[1]]), Slow(), 12, 4)
