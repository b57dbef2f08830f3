"""`add_teacher_transcripts`: lets a teacher transcribe recordings once and stores the texts as a column."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from hf_distill.data.media import input_of
from hf_distill.data.speech import SpeechReader, check_durations, language_of_speech, speech_reader
from hf_distill.sounds import read_sound
from hf_distill.training.teacher.columns import vocabulary_fingerprint
from hf_distill.training.teacher.texts import (
    TextWriter,
    check_numbers,
    check_writer,
    longest_text,
    record_of,
    with_texts,
)
from hf_distill.training.training_args import TeacherDtype


def add_teacher_transcripts(
    dataset: Dataset,
    teacher: PreTrainedModel | PeftModel,
    processor: Any,
    *,
    language: str | None = None,
    target_column: str = "target",
    max_target_length: int | None = None,
    num_beams: int = 1,
    batch_size: int = 16,
    dtype: TeacherDtype | None = None,
    output_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Lets a teacher transcribe each recording, for sequence-level distillation of speech recognition.

    The student is then trained on these transcripts (pseudo-labels), like on any others. A repeated call loads the
    stored texts. An interrupted call continues where it stopped, and loses at most 8 batches. With `accelerate launch`
    or `torchrun`, each process takes a share of the rows.

    Reference: Gandhi et al., 2023, Distil-Whisper, https://arxiv.org/abs/2311.00430

    Args:
        dataset: rows with recordings, from `load_transcribed_sounds` without `text_column`.
        teacher: a Whisper. It is not changed. Options that are not given here come from its generation config.
        processor: the teacher's processor.
        language: language of the speech, such as `"en"`, which a multilingual Whisper is told. An English one takes
            none.
        target_column: new column for the transcripts.
        max_target_length: the maximum number of tokens of a transcript. By default as in the teacher's generation
            config.
        num_beams: number of beams; 1 is greedy search, as in Distil-Whisper.
        batch_size: recordings per batch.
        dtype: the dtype that the teacher computes in; by default its own.
        output_dir: the folder for the transcripts; by default one in the cache of `datasets`.

    Returns:
        The dataset with the additional column.

    Raises:
        TypeError: if `teacher` is not a transformers model, or if `dataset` is not a `Dataset`.
        ValueError: if the teacher is not a model that transcribes; if it needs a language, or takes none; if a
            recording is longer than it reads; if the target column exists; if a number is out of range; or if
            `output_dir` has transcripts of another teacher, dataset or option.
        OSError: if the transcripts cannot be written, for instance on a full disk. Finished shards are kept.

    Example:
        >>> recordings = load_transcribed_sounds("calls", text_column=None)
        >>> train = add_teacher_transcripts(recordings, teacher, processor, language="en")
        >>> rows = encode_transcripts(train, student_processor, max_target_length=128)
    """
    class_and_source = ("AutoModelForSpeechSeq2Seq", "recordings")
    model = check_writer(dataset, teacher, "audio", target_column, dtype, *class_and_source)
    reader = speech_reader(processor)
    longest = longest_text(model, max_target_length)
    check_numbers(longest, num_beams, batch_size)
    check_durations(dataset, reader)
    target_dtype = model.dtype if dtype is None else getattr(torch, dtype)
    searching = {"num_beams": num_beams, "max_length": longest + 1, **language_of_speech(model, language)}
    manifest = {
        "teacher": record_of(model, target_dtype),
        "processor": {
            "vocabulary": vocabulary_fingerprint(processor.tokenizer),
            "extractor": processor.feature_extractor.to_dict(),
        },
        "dataset": {"fingerprint": dataset._fingerprint, "rows": len(dataset)},
        "options": searching,
    }
    writer = _Transcriber(model, processor, reader, batch_size, target_dtype, searching)
    return with_texts(dataset, target_column, manifest, writer, output_dir)


class _Transcriber(TextWriter):
    """Transcribes recordings."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        reader: SpeechReader,
        batch_size: int,
        dtype: torch.dtype,
        searching: Mapping[str, Any],
    ):
        super().__init__(model, batch_size, dtype, searching)
        self.processor, self.reader = processor, reader

    def __call__(self, rows: dict[str, list], done: Callable[[int], object]) -> pa.Table:
        files, texts = rows["audio"], []
        for start in range(0, len(files), self.batch_size):
            batch = files[start : start + self.batch_size]
            sounds = [read_sound(input_of(file), self.reader.rate) for file in batch]
            features = np.stack([self.reader.inputs(sound)["input_features"] for sound in sounds])
            inputs = torch.from_numpy(features).to(self.model.device, self.dtype)
            texts += self.generate(self.processor.batch_decode, input_features=inputs)
            done(len(batch))
        return pa.table({"text": texts})
