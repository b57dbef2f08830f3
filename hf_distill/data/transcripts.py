"""Loads recordings of speech with their transcripts, and turns them into rows for a model that transcribes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.media import checked_files, load_files, rows_of_table
from hf_distill.data.reading import check_texts, read_rows
from hf_distill.data.sounds import SOUNDS, Hearing
from hf_distill.data.speech import check_durations, speech_reader

START = "<|startoftranscript|>"
"""Whisper's first token of a transcript."""


def load_transcribed_sounds(
    source: str | Path,
    audio_column: str = "audio",
    text_column: str | None = "text",
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads recordings and what is said in them, and checks that all recordings can be decoded.

    Args:
        source: a .csv (with a header), .json, .jsonl or .parquet file; a folder that `datasets.load_dataset` reads; or
            a Hub name. Without `text_column`, also a folder with audio files, also in subfolders.
        audio_column: column with the recordings: names of files, relative to the folder of the table; bytes of files;
            or an `Audio` column.
        text_column: column with the transcripts, such as `"sentence"` in Common Voice. None loads recordings alone.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns `audio`, the name or the bytes of a file; `sha256` of the file; and, with
        `text_column`, `target`, the transcript.

    Raises:
        ValueError: if there are no recordings; if one is missing, empty, truncated or not audio; if a column is
            missing; or if a transcript is empty or not a string. Rows are counted from 1, without the header.
        ImportError: if soundfile is missing.

    Example:
        >>> train = load_transcribed_sounds("calls.csv", audio_column="file", text_column="transcript")
        >>> test = load_transcribed_sounds("openslr/librispeech_asr", config_name="clean", split="test")
    """
    if text_column is None:
        return load_files(SOUNDS, source, audio_column, split, config_name)
    table = read_rows(source, [audio_column, text_column], split, config_name)
    check_texts(table, text_column, source)
    rows = checked_files(SOUNDS, rows_of_table(SOUNDS, table, audio_column, source), source)
    return rows.add_column("target", table[text_column][:])


def encode_transcripts(dataset: Dataset, processor: Any, max_target_length: int) -> Dataset:
    """Tokenizes transcripts, and makes recordings ready for a model: each is decoded only when its row is read.

    Args:
        dataset: rows from `load_transcribed_sounds`.
        processor: the model's processor. For a multilingual Whisper, set its language first, with
            `processor.tokenizer.set_prefix_tokens(language="en", task="transcribe")`.
        max_target_length: tokens per transcript, including special tokens. A longer transcript is truncated at its end,
            and its last token is still the end of the text.

    Returns:
        The rows with `labels` and `input_features` `[mel bands, frames]`, in place of `target` and `audio`. Labels do
        not contain the token that the decoder starts with.

    Raises:
        ValueError: if a recording is longer than the model reads, or if `max_target_length` leaves no room for text.

    Example:
        >>> processor = AutoProcessor.from_pretrained("openai/whisper-small.en")
        >>> encode_transcripts(load_transcribed_sounds("calls.csv"), processor, 128)[0]["input_features"].shape
        (80, 3000)
    """
    tokenizer, reader = processor.tokenizer, speech_reader(processor)
    start = tokenizer.convert_tokens_to_ids(START)
    shortest = len(_after(tokenizer("a")["input_ids"], start))
    if max_target_length < shortest:
        raise ValueError(f"max_target_length={max_target_length} leaves no room for text: use at least {shortest}.")
    check_durations(dataset, reader)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        tokens = tokenizer(batch["target"], max_length=max_target_length + 1, truncation=True)["input_ids"]
        return {"labels": [_after(own, start) for own in tokens]}

    encoded = dataset.map(encode, batched=True, remove_columns=["target"], desc="Tokenising transcripts")
    encoded = encoded.remove_columns("sha256").rename_column("audio", "input_features")
    return encoded.with_transform(Hearing(reader, "input_features"))


def _after(tokens: list[int], start: int) -> list[int]:
    """Tokens without the one that the decoder starts with: models put it in front of the labels themselves."""
    return tokens[1:] if tokens[0] == start else tokens


def collate_speech(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Makes a batch of rows from `encode_transcripts`.

    Returns:
        `input_features` `[rows, mel bands, frames]`, and `labels` `[rows, tokens]`, padded with -100.

    Example:
        >>> trainer = DistillationTrainer(student, args, teacher_model=teacher, data_collator=collate_speech, ...)
    """
    features = torch.from_numpy(np.stack([row["input_features"] for row in rows]))
    labels = [torch.as_tensor(row["labels"]) for row in rows]
    return {
        "input_features": features,
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }
