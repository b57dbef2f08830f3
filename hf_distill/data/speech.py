"""Reads recordings for models that transcribe speech, such as Whisper."""

from typing import Any

import numpy as np
from transformers import AutoProcessor, WhisperFeatureExtractor

from hf_distill.data.sounds import ExtractorReader
from hf_distill.sounds import SoundReader


def load_speech_processor(name: str) -> Any:
    """Loads the processor of a model that transcribes speech: its feature extractor and its tokenizer.

    Raises:
        ValueError: if one of them is missing.
    """
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} has no processor that can be loaded: save it with the model. {error}") from error
    if not (hasattr(processor, "feature_extractor") and hasattr(processor, "tokenizer")):
        raise ValueError(f"{name} has no processor with a feature extractor and a tokenizer: save both with the model.")
    return processor


def speech_reader(processor: Any) -> SoundReader:
    """What prepares recordings for a model that transcribes speech.

    Raises:
        ValueError: if it is not Whisper's feature extractor, which gives every recording the same size.
    """
    extractor = processor.feature_extractor
    if not isinstance(extractor, WhisperFeatureExtractor):
        raise ValueError(
            f"{type(extractor).__name__} is not supported for speech recognition: use a model with Whisper's feature "
            f"extractor, such as openai/whisper-small."
        )
    return SpeechReader(extractor)


class SpeechReader(ExtractorReader):
    """Makes log-mel spectrograms with Whisper's feature extractor. Recordings that are too long are refused."""

    def inputs(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The spectrogram `[mel bands, frames]` of samples `[samples]` at `rate`, by name.

        Raises:
            ValueError: if there are more samples than the model reads. The message goes on after the recording's name.
        """
        longest = self.extractor.n_samples
        if len(samples) > longest:
            raise ValueError(
                f"lasts {len(samples) / self.rate:.1f} s, but the model reads {longest / self.rate:g} s: split it"
            )
        return super().inputs(samples)
