"""Refuses versions of tokenizers that lose the ends of long texts."""

from functools import cache

import tokenizers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit


@cache
def check_overflow() -> None:
    """Checks, once per process, that a truncated text is returned whole: its first tokens and its `overflowing`.

    tokenizers 0.23.1 and 0.23.2 stop reading a text when its first window is full, so that later windows are missing:
    https://github.com/huggingface/tokenizers/issues/2091. Nothing else in the encoding shows it.

    Raises:
        ImportError: if the installed version does so.
    """
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(1)
    if len(tokenizer.encode("a a a").overflowing) != 2:
        raise ImportError(
            f"tokenizers {tokenizers.__version__} drops the text behind the first max_length tokens, so that "
            f"overlapping windows lose it. Install another version: pip install 'tokenizers!=0.23.1,!=0.23.2'"
        )
