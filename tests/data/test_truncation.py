"""Which part of a long text is kept, for tokenizers with and without special tokens around a text."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer

from hf_distill import encode_texts
from tests.conftest import make_text_tokenizer

PARTS = ("head", "tail", "head_tail")


def make_tokenizer(template):
    tokenizer = make_text_tokenizer()
    if template is None:
        tokenizer.backend_tokenizer.post_processor = None
    elif template == "slow":
        vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "[MASK]": 4}
        return BertTokenizer(vocab=vocab | {f"w{index}": index for index in range(5, 61)}, model_max_length=38)
    else:
        tokens = [("[CLS]", 1), ("[SEP]", 2), ("[MASK]", 4)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(template, special_tokens=tokens)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


TOKENIZERS = {
    "as BERT": (make_tokenizer("[CLS] $A [SEP]"), 1, 1),
    "none": (make_tokenizer(None), 0, 0),
    "before only": (make_tokenizer("[CLS] [CLS] $A"), 2, 0),
    "as XLNet": (make_tokenizer("$A:0 [SEP]:0 [CLS]:2"), 0, 2),
    "BERT": (make_tokenizer("slow"), 1, 1),
}


def encode(text, tokenizer, max_length, truncation):
    (row,) = encode_texts(Dataset.from_dict({"text": [text], "labels": [1]}), tokenizer, max_length, truncation)
    assert row.pop("labels") == 1
    return row


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(
    ids=st.lists(st.sampled_from([1, 2, *range(5, 30)]), min_size=1, max_size=20),
    max_length=st.integers(3, 24),
    truncation=st.sampled_from(PARTS),
)
def test_parts(name, ids, max_length, truncation):
    """Texts may contain special tokens."""
    tokenizer, before, after = TOKENIZERS[name]
    words = {1: "[CLS]", 2: "[SEP]"}
    text = " ".join(words.get(index, f"w{index}") for index in ids)
    whole = tokenizer(text)
    row = encode(text, tokenizer, max_length, truncation)
    assert row.keys() == whole.keys()
    assert {len(values) for values in row.values()} == {min(len(whole["input_ids"]), max_length)}
    if len(whole["input_ids"]) <= max_length:
        assert row == dict(whole)
        return
    room = max_length - before - after
    head = {"head": room, "tail": 0, "head_tail": round(room / 4 + 1e-9)}[truncation]
    kept = ids[:head] + ids[len(ids) - (room - head) :]
    expected = tokenizer(" ".join(words.get(index, f"w{index}") for index in kept))
    assert row == dict(expected)
    if truncation == "head":
        assert row == dict(tokenizer(text, truncation=True, max_length=max_length))


def test_head_and_tail_of_the_paper():
    tokenizer = make_text_tokenizer()
    (row,) = encode_texts(
        Dataset.from_dict({"text": ["w5 " * 128 + "w6 " * 500 + "w7 " * 382]}), tokenizer, 512, "head_tail"
    )
    assert row["input_ids"] == [1, *[5] * 128, *[7] * 382, 2]


def test_long_texts_without_a_warning(caplog, capsys):
    encode("w5 " * 100, make_text_tokenizer(), 20, "tail")
    assert "Token indices" not in caplog.text + capsys.readouterr().err


def test_no_room_and_no_such_part():
    dataset = Dataset.from_dict({"text": ["w5"]})
    with pytest.raises(ValueError, match="max_length=2 leaves no room for text: the tokenizer adds 2 special tokens"):
        encode_texts(dataset, make_text_tokenizer(), 2)
    with pytest.raises(ValueError, match="truncation='middle' must be one of head, tail, head_tail"):
        encode_texts(dataset, make_text_tokenizer(), 20, "middle")
