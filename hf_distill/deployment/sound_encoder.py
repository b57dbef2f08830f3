"""Turns recordings into arrays with NumPy, SciPy and soundfile alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_distill.deployment.file_encoder import FileEncoder
from hf_distill.sounds import SoundReader, read_sound

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
class SoundEncoder(FileEncoder):
    """Turns recordings into model inputs: file names, bytes, or samples `[samples]` at the rate of the model.

    Args:
        reader: prepares recordings.
        inputs: names of the model's inputs.
    """

    noun = "recording"
    part = 64  # in fp32, 64 recordings of 10 seconds at 16 kHz take 41 MB

    reader: SoundReader
    inputs: list[str]

    @classmethod
    def of(cls, reader: SoundReader) -> "SoundEncoder":
        """An encoder that gives all inputs of the reader."""
        return cls(reader, list(reader.inputs(np.zeros(reader.rate, np.float32))))

    def blank(self) -> np.ndarray:
        return np.zeros(self.reader.rate, np.float32)

    def prepare(self, file: Any) -> EncodedSound:
        return EncodedSound(self.reader.inputs(read_sound(file, self.reader.rate)))

    def pad(self, encodings: Sequence[EncodedSound]) -> dict[str, np.ndarray]:
        """Makes one batch: `[recordings, ...]` for each input of the model."""
        return {name: np.stack([encoding.inputs[name] for encoding in encodings]) for name in self.inputs}
