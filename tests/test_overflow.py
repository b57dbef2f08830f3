"""Versions of tokenizers that lose the ends of long texts are refused."""

import pytest
import tokenizers

from hf_distill import overflow
from hf_distill.data.tagged_windows import tokenize_in_windows
from hf_distill.deployment.text_encoder import TextEncoder
from tests.conftest import make_text_tokenizer


class LosesEnds:
    """Returns one encoding fewer than the text has, as tokenizers 0.23.1 and 0.23.2 do."""

    def __init__(self, model):
        self.tokenizer = tokenizers.Tokenizer(model)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name != "tokenizer":
            setattr(self.tokenizer, name, value)

    def enable_truncation(self, max_length):
        self.tokenizer.enable_truncation(max_length)

    def encode(self, text):
        return self.tokenizer.encode(text.rpartition(" ")[0])


@pytest.fixture
def losing_ends(monkeypatch):
    monkeypatch.setattr(overflow, "Tokenizer", LosesEnds)
    overflow.check_overflow.cache_clear()
    yield
    overflow.check_overflow.cache_clear()


def test_the_installed_version():
    overflow.check_overflow.cache_clear()
    overflow.check_overflow()


@pytest.mark.usefixtures("losing_ends")
def test_a_version_that_loses_the_ends():
    tokenizer = make_text_tokenizer()
    with pytest.raises(ImportError, match=rf"tokenizers {tokenizers.__version__} drops .* pip install 'tokenizers!="):
        TextEncoder(tokenizer.backend_tokenizer, ["input_ids"], 8, 0)
    with pytest.raises(ImportError, match="windows lose it"):
        tokenize_in_windows(["w1 w2"], tokenizer, 8, 2)
