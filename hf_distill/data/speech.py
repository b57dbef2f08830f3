"""Reads recordings for models that transcribe speech, such as Whisper, and tells them the language."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoProcessor, PreTrainedModel, WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from hf_distill.data.media import input_of
from hf_distill.data.showing import listed_rows
from hf_distill.data.sounds import ExtractorReader
from hf_distill.sounds import seconds_of


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


def speech_reader(processor: Any) -> "SpeechReader":
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

    @property
    def longest(self) -> float:
        """Seconds that the model reads."""
        return self.extractor.n_samples / self.rate

    def inputs(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The spectrogram `[mel bands, frames]` of samples `[samples]` at `rate`, by name.

        Raises:
            ValueError: if there are more samples than the model reads. The message goes on after the recording's name.
        """
        if len(samples) > self.extractor.n_samples:
            raise ValueError(
                f"lasts {len(samples) / self.rate:.1f} s, but the model reads {self.longest:g} s: split it"
            )
        return super().inputs(samples)


def check_durations(rows: Dataset, reader: SpeechReader) -> None:
    """Raises `ValueError` if recordings are longer than the model reads; it names the first ones."""
    files = rows.select_columns("audio")
    long = [number for number, row in enumerate(files, 1) if seconds_of(input_of(row["audio"])) > reader.longest]
    if long:
        name = files[long[0] - 1]["audio"]["path"]
        raise ValueError(
            f"The model reads {reader.longest:g} s, but {len(long)} of {len(rows)} recordings are longer "
            f"({listed_rows(long)}{f'; the first is {name}' if name else ''}): split or remove them."
        )


def set_speech_language(model: PreTrainedModel, processor: Any, language: str | None) -> None:
    """Sets the language of transcripts in the tokenizer, and in the generation config, which is saved with the model.

    Args:
        model: a Whisper.
        processor: its processor.
        language: the language, as in `language_of_speech`.

    Raises:
        ValueError: as `language_of_speech`.
    """
    options = language_of_speech(model, language)
    model.generation_config.forced_decoder_ids = None  # of older generation configs: another language
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    processor.tokenizer.set_prefix_tokens(**options, predict_timestamps=False)


def language_of_speech(model: PreTrainedModel, language: str | None) -> dict[str, str]:
    """The options of Whisper's `generate` for transcripts in a language; empty for a model that knows English only.

    Args:
        model: a Whisper.
        language: the language of the speech: its code or its name, such as `"de"` or `"german"`.

    Raises:
        ValueError: if a multilingual model is not told the language, or does not know it; or if an English one is told
            another.
    """
    name = model.name_or_path or type(model).__name__
    code = None if language is None else TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    config = model.generation_config
    if not getattr(config, "is_multilingual", False):
        if code not in (None, "en"):
            raise ValueError(f"{name} knows English only, but language={language!r}: use a multilingual Whisper.")
        return {}
    known = sorted(token[2:-2] for token in config.lang_to_id)
    if code is None:
        raise ValueError(f"{name} is multilingual: set language, the language of the speech, such as language=en.")
    if code not in known:
        raise ValueError(f"language={language!r} is not a language of {name}: it knows {', '.join(known)}.")
    return {"language": code, "task": "transcribe"}
