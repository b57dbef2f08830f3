"""What encoders of images and of recordings share: files are decoded in parts that fit into memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from hf_distill.deployment.text_encoder import TextEncoder


class FileEncoder(ABC):
    """Turns files into model inputs, with the methods of `TextEncoder`.

    Attributes:
        noun: what one file is called in errors.
        part: number of files that are decoded at a time.
    """

    noun: ClassVar[str]
    part: ClassVar[int]

    # What readers of a `TextEncoder` ask for. All files of a model get one size, and nothing of them is truncated.
    pad_token_id: ClassVar[int] = 0
    truncation: ClassVar[str] = "head"
    stride: ClassVar[None] = None
    prefix: ClassVar[str] = ""

    batches = staticmethod(TextEncoder.batches)

    @cached_property
    def max_length(self) -> int:
        """Size of an input in tokens."""
        return len(self.encode([self.blank()])[0])

    def encode(self, files: Sequence[Any], first: int = 0) -> list[Any]:
        """Decodes and prepares files.

        Args:
            files: names of files, bytes of files, or what is decoded already.
            first: number of the first file, for errors.

        Raises:
            ValueError: if one cannot be read; the message gives its index.
        """
        if isinstance(files, str | bytes):
            raise ValueError(f"{self.noun}s must be a list, but is one {self.noun}: give [{files[:40]!r}].")
        return [self._encode(file, number) for number, file in enumerate(files, start=first)]

    def _encode(self, file: Any, number: int) -> Any:
        try:
            return self.prepare(file)
        except ValueError as error:
            name = f" ({file})" if isinstance(file, str) else ""
            raise ValueError(f"{self.noun.capitalize()} {number}{name} {error}.") from None

    def in_parts(self, files: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Encodes files in parts that fit into memory: the index of the first file, and the encoded files."""
        if isinstance(files, str | bytes):
            self.encode(files)  # raises
        for start in range(0, len(files), self.part):
            yield start, self.encode(files[start : start + self.part], start)

    @abstractmethod
    def blank(self) -> np.ndarray:
        """An input of any content."""

    @abstractmethod
    def prepare(self, file: Any) -> Any:
        """What the model reads of a file, with a length in tokens.

        Raises:
            ValueError: if the file cannot be read. The message goes on after the file's name.
        """

    @abstractmethod
    def pad(self, encodings: Sequence[Any]) -> dict[str, np.ndarray]:
        """Makes one batch of encoded files."""
