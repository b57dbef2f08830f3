"""Turns recordings into arrays with NumPy, SciPy and soundfile alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from hf_distill.deployment.text_encoder import TextEncoder
from hf_distill.sounds import SoundReader, read_sound

PART = 64
"""Recordings that are decoded at a time. In fp32, 64 recordings of 10 seconds at 16 kHz take 41 MB."""

VALUES_PER_TOKEN = 320
"""How many samples count as a token, where inputs are counted in tokens: the stride of wav2vec 2.0."""


@dataclass(frozen=True)
class EncodedSound:
    """The inputs of a model for one recording, by name."""

    inputs: dict[str, np.ndarray]
    overflowing: ClassVar[bool] = False

    @property
    def ids(self) -> bytes:
        """What only equal recordings share."""
        return b"".join(array.tobytes() for array in self.inputs.values())

    def __len__(self) -> int:
        return max(1, next(iter(self.inputs.values())).size // VALUES_PER_TOKEN)


@dataclass
class SoundEncoder:
    """Turns recordings into model inputs, with the methods of `TextEncoder`.

    Args:
        reader: prepares recordings.
        inputs: names of the model's inputs.
    """

    reader: SoundReader
    inputs: list[str]

    # What readers of a `TextEncoder` ask for. All recordings get one length.
    pad_token_id: ClassVar[int] = 0
    truncation: ClassVar[str] = "head"
    stride: ClassVar[None] = None
    prefix: ClassVar[str] = ""

    @classmethod
    def of(cls, reader: SoundReader) -> "SoundEncoder":
        """An encoder that gives all inputs of the reader."""
        return cls(reader, list(reader.inputs(np.zeros(reader.rate, np.float32))))

    @cached_property
    def max_length(self) -> int:
        """Size of a recording in tokens."""
        return len(self.encode([np.zeros(self.reader.rate, np.float32)])[0])

    def encode(self, sounds: Sequence[Any], first: int = 0) -> list[Any]:
        """Decodes, resamples and prepares recordings.

        Args:
            sounds: file names, bytes of files, or samples `[samples]` at the rate of the model.
            first: number of the first recording, for errors.

        Raises:
            ValueError: if one cannot be read; the message gives its index.
        """
        if isinstance(sounds, str | bytes):
            raise ValueError(f"recordings must be a list, but is one recording: give [{sounds[:40]!r}].")
        return [self._encode(sound, number) for number, sound in enumerate(sounds, start=first)]

    def _encode(self, sound: Any, number: int) -> EncodedSound:
        try:
            return EncodedSound(self.reader.inputs(read_sound(sound, self.reader.rate)))
        except ValueError as error:
            name = f" ({sound})" if isinstance(sound, str) else ""
            raise ValueError(f"Recording {number}{name} {error}.") from None

    def in_parts(self, sounds: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Encodes recordings in parts that fit into memory: the index of the first, and the encoded recordings."""
        if isinstance(sounds, str | bytes):
            self.encode(sounds)  # raises
        for start in range(0, len(sounds), PART):
            yield start, self.encode(sounds[start : start + PART], start)

    def pad(self, encodings: Sequence[Any]) -> dict[str, np.ndarray]:
        """Makes one batch: `[recordings, ...]` for each input of the model."""
        return {name: np.stack([encoding.inputs[name] for encoding in encodings]) for name in self.inputs}

    batches = staticmethod(TextEncoder.batches)
