"""The maximum length of a model, from its tokenizer and its config."""

import pytest

from hf_distill.lengths import length_of_rows
from tests.conftest import make_model, make_text_tokenizer


def test_length_of_rows():
    tokenizer = make_text_tokenizer()
    bert, roberta, gpt2, t5 = (make_model(family, "classification") for family in ("bert", "roberta", "gpt2", "t5"))
    assert [length_of_rows(None, tokenizer, model) for model in (bert, t5)] == [38, 38]
    tokenizer.model_max_length = 10**30
    assert [length_of_rows(None, tokenizer, model) for model in (bert, roberta, gpt2)] == [40, 39, 40]
    assert [length_of_rows(39, tokenizer, model) for model in (bert, roberta, t5)] == [39, 39, 39]
    with pytest.raises(ValueError, match="max_length=40 exceeds the model's 39 tokens"):
        length_of_rows(40, tokenizer, roberta)
    with pytest.raises(ValueError, match="Neither the tokenizer nor the model has"):
        length_of_rows(None, tokenizer, t5)
