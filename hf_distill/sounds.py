"""Reads recordings, and turns them into inputs of a model with NumPy, SciPy and soundfile alone.

Training, evaluation and predictions all use this file, so that they hear the same samples. It needs neither PyTorch nor
transformers. soundfile and SciPy are imported where they are used.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_distill.optional import optional

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au")
"""Suffixes of the files that are taken as recordings in a folder."""

Sound = str | Path | bytes | np.ndarray
"""A file name, the bytes of a file, or samples `[samples]` in floating point at the rate of the model."""


def read_sound(sound: Sound, rate: int) -> np.ndarray:
    """Decodes a recording, averages its channels, and resamples it to the rate of a model.

    Resampling is done by `scipy.signal.resample_poly`: a polyphase filter that removes frequencies above half of the
    lower rate, so that they do not fold back.

    Args:
        sound: a file name, the bytes of a file, or samples `[samples]` at `rate`.
        rate: samples per second that the model reads.

    Returns:
        `[samples]` in fp32, between -1 and 1 for files.

    Raises:
        ValueError: if it is not a recording, is truncated, is silent because it has no samples, or has samples that are
            not finite. The message continues a sentence that names the recording, such as `is empty`.
        ImportError: if soundfile or SciPy is missing.
    """
    if isinstance(sound, np.ndarray):
        if sound.ndim != 1 or not np.issubdtype(sound.dtype, np.floating):
            raise ValueError(f"is a {sound.dtype} array {list(sound.shape)}, but must be floating point [samples]")
        return _finite(sound.astype(np.float32))
    if not isinstance(sound, str | Path | bytes):
        raise ValueError(f"must be a file name, bytes or a NumPy array, but is {type(sound).__name__}")
    samples, own_rate = _decoded(sound)
    if own_rate == rate:
        return samples
    signal = optional("scipy.signal", "audio")
    common = math.gcd(rate, own_rate)
    return signal.resample_poly(samples, rate // common, own_rate // common).astype(np.float32)


def check_sound(content: bytes) -> None:
    """Raises `ValueError` if `read_sound` would."""
    _decoded(content)


def seconds_of(sound: str | bytes) -> float:
    """The length of a recording that can be decoded: a file name, or the bytes of a file."""
    soundfile = optional("soundfile", "audio")
    with soundfile.SoundFile(io.BytesIO(sound) if isinstance(sound, bytes) else sound) as opened:
        return opened.frames / opened.samplerate


def _decoded(sound: str | Path | bytes) -> tuple[np.ndarray, int]:
    soundfile = optional("soundfile", "audio")
    if not isinstance(sound, bytes):
        if not Path(sound).is_file():
            raise ValueError("is not a file: check the name")
        sound = Path(sound).read_bytes()
    if not sound:
        raise ValueError("is empty: replace or remove it")
    try:
        with soundfile.SoundFile(io.BytesIO(sound)) as opened:
            promised, rate = opened.frames, opened.samplerate
            samples = opened.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(
            f"is not a recording of a format such as WAV, FLAC, MP3 or OGG ({error}): replace or remove it"
        ) from None
    if len(samples) < promised or _is_cut(sound):
        raise ValueError("is truncated: replace or remove it")
    if not len(samples):
        raise ValueError("has no samples: replace or remove it")
    return _finite(samples.mean(axis=1)), rate


def _is_cut(content: bytes) -> bool:
    """Whether a WAV file ends before the size in its header, which libsndfile ignores."""
    return content[:4] == b"RIFF" and 8 + int.from_bytes(content[4:8], "little") > len(content) + 1


def _finite(samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise ValueError("has samples that are not finite: replace or remove it")
    return samples


class SoundReader(Protocol):
    """Turns the samples of a recording into inputs of a model."""

    @property
    def rate(self) -> int: ...

    def inputs(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of a model for samples at its rate, by name. Each has the same shape for every recording."""


@dataclass(frozen=True)
class Waveform:
    """Cuts, normalizes and pads samples like the feature extractor of wav2vec 2.0, with the same result bit for bit.

    Args:
        rate: samples per second.
        num_samples: number of samples that a model reads. A longer recording is cut at the end, a shorter one is padded
            with zeros.
        normalize: whether the samples of a recording get mean 0 and variance 1, before padding.
        has_mask: whether the model gets an attention mask, which is 0 for padding.

    Example:
        >>> waveform = Waveform(rate=16000, num_samples=16000, normalize=True, has_mask=False)
        >>> waveform.inputs(read_sound("yes.wav", 16000))["input_values"].shape
        (16000,)
    """

    rate: int
    num_samples: int
    normalize: bool
    has_mask: bool

    def inputs(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        samples = samples[: self.num_samples]
        if self.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        missing = self.num_samples - len(samples)
        values: dict[str, Any] = {"input_values": np.pad(samples.astype(np.float32), (0, missing))}
        if self.has_mask:
            values["attention_mask"] = np.pad(np.ones(len(samples), np.int64), (0, missing))
        return values
