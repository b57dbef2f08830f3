"""Turns texts into arrays of tokens with the `tokenizers` package alone."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from tokenizers import Encoding, Tokenizer

from hf_distill.answers import ContextWindow, split_context
from hf_distill.overflow import check_overflow

TextInput = str | tuple[str, str]
"""A text, or a pair of question and context."""

MAX_BATCH_TOKENS = 4096
"""Largest batch in tokens, including padding: 8 texts of 512 tokens."""


@dataclass(frozen=True)
class EditedTokens:
    """Tokens of a text that is truncated in the middle, or masked, with the attributes of `Encoding` that are used."""

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    offsets: list[tuple[int, int]]

    overflowing: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.ids)


Window = Encoding | EditedTokens | ContextWindow
"""Tokens that the model reads at a time: a text, or a window of it."""


@dataclass(frozen=True)
class Windows:
    """A text in overlapping windows, each with the special tokens around it. Nothing is truncated.

    Of a question and its context, each window has the whole question.
    """

    windows: Sequence[Window]

    overflowing: ClassVar[bool] = False

    @property
    def ids(self) -> list[int]:
        return [token for window in self.windows for token in window.ids]

    def __len__(self) -> int:
        return sum(map(len, self.windows))


Encoded = Window | Windows
"""The tokens of one text."""


def windows_of(encodings: Sequence[Encoded]) -> list[Window]:
    """Everything that the model reads for these texts, in their order."""
    parts: list[Window] = []
    for encoding in encodings:
        parts += encoding.windows if isinstance(encoding, Windows) else [encoding]
    return parts


@dataclass
class TextEncoder:
    """Turns texts into model inputs.

    Args:
        tokenizer: the backend of a fast tokenizer. Its own truncation and padding are switched off.
        inputs: names of the model's inputs: `input_ids`, `attention_mask`, and for some models `token_type_ids`.
        max_length: tokens per text, including special tokens.
        pad_token_id: token that pads shorter texts of a batch on the right.
        truncation: which part of a long text is kept: `head`, `tail`, or `head_tail` (a quarter from the beginning and
            the rest from the end). `context` is for pairs of question and context: nothing is truncated.
        stride: if given, a long text is not truncated, but read in windows of `max_length` tokens; this many tokens,
            without special tokens, are in both of two neighbouring windows. Needs `truncation="head"`, or `"context"`
            to split the second text of each pair.
        prefix: text in front of each text.
    """

    tokenizer: Tokenizer
    inputs: list[str]
    max_length: int
    pad_token_id: int
    truncation: str = "head"
    stride: int | None = None
    prefix: str = ""

    def __post_init__(self):
        self.tokenizer.no_padding()
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(False)
        if self.truncation != "context" and self.stride is not None and not 0 <= self.stride < room:
            raise ValueError(
                f"stride={self.stride} must be at least 0 and below the {room} tokens of text in a window."
            )
        if self.truncation in ("head_tail", "context"):
            self.tokenizer.no_truncation()
        else:
            check_overflow()
            direction = {"head": "right", "tail": "left"}[self.truncation]
            self.tokenizer.enable_truncation(self.max_length, stride=self.stride or 0, direction=direction)

    @classmethod
    def from_file(
        cls,
        file: Path,
        inputs: list[str],
        max_length: int,
        pad_token_id: int,
        truncation: str = "head",
        stride: int | None = None,
        prefix: str = "",
    ) -> "TextEncoder":
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # `tokenizers` raises plain Exception
            raise ValueError(f"{file} is not a valid tokenizer: {error}. Copy it again, or export again.") from error
        return cls(tokenizer, inputs, max_length, pad_token_id, truncation, stride, prefix)

    def encode(self, texts: Sequence[TextInput]) -> list[Encoded]:
        """Tokenizes texts. A truncated text has a non-empty `overflowing`.

        Raises:
            ValueError: if a text is empty, is not a string, or is not valid Unicode, or if a question leaves too little
                room for its context; the message gives its index.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, but is one string: give [{texts[:40]!r}].")
        for number, text in enumerate(texts):
            check_text(number, text)
        whole = self.tokenizer.encode_batch([f"{self.prefix}{text}" for text in texts] if self.prefix else list(texts))
        encodings: list[Encoded] = [*whole]
        if self.truncation == "head_tail":
            encodings = [self._head_and_tail(encoding) for encoding in whole]
        if self.truncation == "context":
            encodings = [self._context_windows(number, encoding) for number, encoding in enumerate(whole)]
        elif self.stride is not None:
            encodings = [Windows([encoding, *encoding.overflowing]) for encoding in whole]
        for number, encoding in enumerate(encodings):
            if not encoding.ids:
                raise ValueError(f"Text {number} gives no tokens: {texts[number][:40]!r}.")
        return encodings

    def in_parts(self, texts: Sequence[TextInput]) -> Iterator[tuple[int, list[Encoded]]]:
        """Encodes texts in parts that fit into memory, all at once: the index of the first text, and the tokens."""
        yield 0, self.encode(texts)

    def cut_to(self, max_length: int) -> "TextEncoder":
        """A copy that truncates single texts to `max_length` tokens, for inputs of an exact length."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())  # a tokenizer object holds only one truncation length
        truncation = "head" if self.truncation == "context" else self.truncation
        return dataclasses.replace(self, tokenizer=tokenizer, max_length=max_length, truncation=truncation, stride=None)

    def _context_windows(self, number: int, encoding: Encoding) -> Windows:
        try:
            return Windows(split_context(encoding, self.max_length, self.stride or 0))
        except ValueError as error:
            raise ValueError(f"Text {number} cannot be read. {error}") from None

    def _head_and_tail(self, encoding: Encoding) -> Window:
        if len(encoding) <= self.max_length:
            return encoding
        num_special = self.tokenizer.num_special_tokens_to_add(False)
        before = self.tokenizer.encode("a").special_tokens_mask.index(0)
        room = self.max_length - num_special
        from_start = before + (room + 2) // 4  # as in `encode_texts`
        from_end = self.max_length - from_start
        return EditedTokens(
            **{
                field.name: getattr(encoding, field.name)[:from_start] + getattr(encoding, field.name)[-from_end:]
                for field in dataclasses.fields(EditedTokens)
            }
        )

    def pad(self, encodings: Sequence[Window]) -> dict[str, np.ndarray]:
        """Makes one padded batch: `[texts or windows, tokens]` in int64 for each input of the model."""
        shape = len(encodings), max(len(encoding) for encoding in encodings)
        values = {name: np.zeros(shape, np.int64) for name in self.inputs}
        if "input_ids" in values:
            values["input_ids"][:] = self.pad_token_id
        for row, encoding in enumerate(encodings):
            own = {
                "input_ids": encoding.ids,
                "attention_mask": encoding.attention_mask,
                "token_type_ids": encoding.type_ids,
            }
            for name, array in values.items():
                array[row, : len(encoding)] = own[name]
        return values

    @staticmethod
    def batches(encodings: Sequence[Encoded], max_size: int) -> Iterator[list[int]]:
        """Groups texts of similar length into batches of at most `max_size` indices, shortest texts first."""
        batch: list[int] = []
        for index in sorted(range(len(encodings)), key=lambda index: len(encodings[index])):
            tokens = (len(batch) + 1) * len(encodings[index])
            if batch and (len(batch) == max_size or tokens > MAX_BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def check_text(number: int, text: TextInput) -> None:
    """Raises `ValueError` if a text or a part of a pair is empty, is not a string, or is not valid Unicode."""
    for part in text if isinstance(text, tuple) else (text,):
        if not isinstance(part, str):
            raise ValueError(f"Text {number} must be a string, but is {type(part).__name__}.")
        if not part.strip():
            raise ValueError(f"Text {number} is empty.")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {number} is not valid Unicode: it contains a lone surrogate at position {error.start}."
            ) from None
