"""Loads recordings for classification, with or without labels, from folders, tables and the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, Dataset
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

from hf_distill.data.class_labels import ProblemType
from hf_distill.data.media import Kind, input_of, load_labelled_files, load_unlabelled_files
from hf_distill.sounds import SUFFIXES, SoundReader, Waveform, check_sound, read_sound

MAX_SECONDS = 10.0
"""Length that a model of waveforms reads by default."""

SOUNDS = Kind(column="audio", noun="recording", suffixes=SUFFIXES, feature=Audio, check=check_sound)


def load_labelled_sounds(
    source: str | Path,
    audio_column: str = "audio",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> tuple[Dataset, list[str]]:
    """Loads recordings with their labels, finds the names of the classes, and checks that all can be decoded.

    Args:
        source: one of: a folder with one subfolder of audio files per class; a .csv (with a header), .json, .jsonl or
            .parquet file; a folder that `datasets.load_dataset` reads; a Hub name.
        audio_column: column with the recordings: names of files, relative to the folder of the table; bytes of files;
            or an `Audio` column. Not used for a folder per class.
        label_column: column with the labels, as in `load_labelled_texts`. Not used for a folder per class.
        label_names: class names in the order of their numbers, from a model or the training data. Default: the classes
            found in the source.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label is, as in the configs of transformers.

    Returns:
        A dataset, and the class names in the order of their numbers. Its columns are `audio`, the name or the bytes of
        a file; `sha256` of the file; and `labels`, as in `load_labelled_texts`.

    Raises:
        ValueError: if there are no recordings; if one is missing, empty, truncated or not audio; if a column is
            missing; or if labels are wrong, as in `load_labelled_texts`. Rows are counted from 1.
        ImportError: if soundfile is missing.

    Example:
        >>> train, names = load_labelled_sounds("commands/train")
    """
    return load_labelled_files(
        SOUNDS, source, audio_column, label_column, label_names, split, config_name, problem_type
    )


def load_unlabelled_sounds(
    source: str | Path,
    audio_column: str = "audio",
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    num_classes: int | None = None,
) -> Dataset:
    """Loads recordings without labels, for training on the teacher's predictions alone.

    Args:
        source: a folder with audio files, also in subfolders; or as in `load_labelled_sounds`.
        audio_column: column with the recordings. A column with labels is ignored.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label would be, as in `load_labelled_sounds`.
        num_classes: number of classes, for `"multi_label_classification"`.

    Returns:
        A dataset with the columns of `load_labelled_sounds`. All labels are unknown.

    Raises:
        ValueError: as in `load_labelled_sounds`.

    Example:
        >>> recordings = load_unlabelled_sounds("recordings")
    """
    return load_unlabelled_files(SOUNDS, source, audio_column, split, config_name, problem_type, num_classes)


def encode_sounds(rows: Dataset, extractor: Any, max_seconds: float = MAX_SECONDS) -> Dataset:
    """Makes the recordings of a dataset ready for a model. Each is decoded and prepared only when its row is read.

    Args:
        rows: rows from `load_labelled_sounds`, perhaps with stored targets.
        extractor: the model's feature extractor.
        max_seconds: length that a model of waveforms reads. A longer recording is cut at the end, a shorter one is
            padded. Models of spectrograms have a length of their own.

    Returns:
        The rows, with the inputs of the model, such as `input_values`, instead of `audio`.

    Example:
        >>> rows = encode_sounds(train, AutoFeatureExtractor.from_pretrained("facebook/wav2vec2-base"), max_seconds=1)
        >>> rows[0]["input_values"].shape
        (16000,)
    """
    name = extractor.model_input_names[0]
    kept = [own for own in rows.column_names if own != "sha256"]
    encoded = rows.select_columns(kept).rename_column("audio", name)
    return encoded.with_transform(Hearing(sound_reader(extractor, max_seconds), name))


def load_extractor(name: str) -> Any:
    """Loads the feature extractor of a model.

    Raises:
        ValueError: if the model has none.
    """
    try:
        return AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} has no feature extractor (preprocessor_config.json): {error}") from error


def sound_reader(extractor: Any, max_seconds: float) -> SoundReader:
    """What prepares recordings as the extractor does: `Waveform` if that can, else the extractor itself."""
    if type(extractor) is Wav2Vec2FeatureExtractor and extractor.padding_value == 0:
        rate = extractor.sampling_rate
        num_samples = max(1, round(max_seconds * rate))
        return Waveform(rate, num_samples, extractor.do_normalize, extractor.return_attention_mask)
    return ExtractorReader(extractor)


@dataclass(frozen=True)
class ExtractorReader:
    """Prepares recordings with the feature extractor itself, which makes a spectrogram of a fixed length."""

    extractor: Any

    @property
    def rate(self) -> int:
        return self.extractor.sampling_rate

    def inputs(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        name = self.extractor.model_input_names[0]
        (values,) = self.extractor(samples, sampling_rate=self.rate, return_tensors="np")[name]
        return {name: np.asarray(values, np.float32)}


@dataclass(frozen=True)
class Hearing:
    """A transform of `datasets`: decodes and prepares the recordings of the rows that are read. Other columns stay."""

    reader: SoundReader
    column: str

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        if self.column not in rows:
            return rows
        heard = [self.reader.inputs(read_sound(input_of(file), self.reader.rate)) for file in rows[self.column]]
        return {**rows, **{name: [own[name] for own in heard] for name in heard[0]}}
