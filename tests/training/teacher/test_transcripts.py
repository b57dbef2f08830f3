"""A teacher transcribes recordings once: the texts, what is stored, and errors."""

import datasets
import pytest
import soundfile
import torch

from hf_distill import add_teacher_transcripts, load_transcribed_sounds
from hf_distill.training.teacher import transcripts
from tests.conftest import make_model
from tests.speech import RATE, make_speech_processor, make_whisper, write_recordings

TEXTS = ["ab", "cba", "bbca", "a", "cc"]


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_recordings(tmp_path / "data", TEXTS)
    return load_transcribed_sounds(tmp_path / "data", text_column=None)


def one_by_one(teacher, folder, **options):
    """The transcripts by transformers alone."""
    processor, written = make_speech_processor(), []
    for number in range(len(TEXTS)):
        sound, _ = soundfile.read(folder / f"{number}.wav", dtype="float32")
        features = processor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        generated = teacher.generate(input_features=features, **options)
        written.append(processor.decode(generated[0], skip_special_tokens=True).strip())
    return written


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_transcripts_are_those_of_transformers(recordings, tmp_path, num_beams):
    teacher = make_whisper()
    written = add_teacher_transcripts(recordings, teacher, make_speech_processor(), num_beams=num_beams, batch_size=2)
    expected = one_by_one(teacher, tmp_path / "data", num_beams=num_beams)
    assert written["target"][:] == expected
    assert len({*expected}) > 2


def test_a_language(recordings, tmp_path):
    teacher = make_whisper(is_multilingual=True)
    options = {"language": "zh", "max_target_length": 9}
    written = add_teacher_transcripts(recordings, teacher, make_speech_processor(), **options)
    expected = one_by_one(teacher, tmp_path / "data", language="zh", task="transcribe", max_length=10)
    assert written["target"][:] == expected
    english = add_teacher_transcripts(recordings, teacher, make_speech_processor(), **{**options, "language": "en"})
    assert english["target"][:] != expected
    with pytest.raises(ValueError, match="is multilingual: set language"):
        add_teacher_transcripts(recordings, teacher, make_speech_processor())


def test_stored_transcripts_are_read_again(recordings, tmp_path, monkeypatch):
    teacher, options = make_whisper(), {"output_dir": tmp_path / "texts"}
    written = add_teacher_transcripts(recordings, teacher, make_speech_processor(), **options)
    monkeypatch.setattr(transcripts._Transcriber, "__call__", lambda *own: pytest.fail("written again"))
    again = add_teacher_transcripts(recordings, teacher, make_speech_processor(), **options)
    assert again["target"][:] == written["target"][:]
    with pytest.raises(ValueError, match="has texts of another teacher"):
        add_teacher_transcripts(recordings, make_whisper(1), make_speech_processor(), **options)


def test_the_dtype(recordings, monkeypatch):
    teacher, used = make_whisper(), set()
    generate = type(teacher).generate
    monkeypatch.setattr(type(teacher), "generate", lambda self, **own: used.add(self.dtype) or generate(self, **own))
    add_teacher_transcripts(recordings, teacher, make_speech_processor(), dtype="bfloat16")
    assert (used, teacher.dtype) == ({torch.bfloat16}, torch.float32)


def test_errors(recordings):
    with pytest.raises(ValueError, match=r"does not write targets for recordings: load .* AutoModelForSpeechSeq2Seq"):
        add_teacher_transcripts(recordings, make_model("bert", "mlm"), make_speech_processor())
    with pytest.raises(ValueError, match="num_beams=0 must be 1 or more"):
        add_teacher_transcripts(recordings, make_whisper(), make_speech_processor(), num_beams=0)
    with pytest.raises(ValueError, match="no column 'audio'"):
        add_teacher_transcripts(recordings.remove_columns("audio"), make_whisper(), make_speech_processor())
