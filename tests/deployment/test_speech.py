"""Models that transcribe speech, in predictor and service."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor, WhisperProcessor

from hf_distill import export_model, load_predictor
from hf_distill.data.speech import load_speech_processor, speech_reader
from hf_distill.loading import load_config
from hf_distill.tasks.registry import TASKS, task_of
from tests.serving.running import RunningService
from tests.speech import RATE, make_speech_processor, make_whisper


def make_recordings(number: int = 4) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    times = [np.arange(int(seconds * RATE)) / RATE for seconds in np.linspace(0.3, 1.0, number)]
    return [
        np.float32(0.5 * np.sin(2 * np.pi * generator.uniform(100, 1500) * time) + generator.normal(0, 0.1, len(time)))
        for time in times
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny Whisper."""
    folder = tmp_path_factory.mktemp("speech") / "whisper"
    make_whisper().save_pretrained(folder)
    make_speech_processor().save_pretrained(folder)
    return folder


def test_the_texts_of_transformers(folder):
    sounds, processor = make_recordings(), make_speech_processor()
    features = processor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        generated = make_whisper().generate(input_features=features)
    expected = [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]
    assert len({*expected}) == len(sounds)

    predictor = load_predictor(folder)
    assert (predictor.head, predictor.reads, predictor.labels) == ("speech recognition", "audio", [])
    assert predictor.predict(sounds) == [{"text": text} for text in expected]


@pytest.mark.long
def test_the_same_texts_from_the_service(folder, tmp_path):
    """Of files at twice the rate, too."""
    contents = []
    for number, sound in enumerate(make_recordings(3)):
        soundfile.write(tmp_path / f"{number}.wav", np.repeat(sound, 2), 2 * RATE)
        contents.append((tmp_path / f"{number}.wav").read_bytes())
    with RunningService(tmp_path, folder, "--workers", "1") as service:
        answers = [service.post(content, **{"content-type": "audio/wav"}).json for content in contents]
        assert answers == load_predictor(folder).predict(contents)
        soundfile.write(tmp_path / "long.wav", np.zeros(3 * RATE), RATE)
        refused = service.post((tmp_path / "long.wav").read_bytes(), **{"content-type": "audio/wav"})
    detail = "Recording 0: lasts 3.0 s, but the model reads 2 s: split it."
    assert (refused.status, refused.json["detail"]) == (422, detail)


def test_recordings_that_are_too_long(folder):
    longest, longer = np.zeros(2 * RATE, np.float32), np.zeros(2 * RATE + 1, np.float32)
    predictor = load_predictor(folder)
    assert len(predictor.predict([longest])) == 1
    with pytest.raises(ValueError, match=r"Recording 1 lasts 2.0 s, but the model reads 2 s: split it"):
        predictor.predict([longest, longer])


def test_no_export(folder, tmp_path):
    for format in ("onnx", "onnx-int8", "torch-int8"):
        with pytest.raises(ValueError, match="makes spectrograms, which exports without transformers cannot do"):
            export_model(folder, tmp_path / "export", format)
    assert not (tmp_path / "export").exists()


def test_other_models(folder, tmp_path):
    other = WhisperProcessor(Wav2Vec2FeatureExtractor(), make_speech_processor().tokenizer)
    with pytest.raises(ValueError, match="Wav2Vec2FeatureExtractor is not supported for speech recognition"):
        speech_reader(other)
    make_whisper().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no processor"):
        load_speech_processor(str(tmp_path))
    config = load_config(str(folder))
    assert task_of(config, str(folder)) is TASKS["speech-recognition"]
    with pytest.raises(ValueError, match="is a model for speech-recognition, not for summarization"):
        task_of(config, str(folder), "summarization")
