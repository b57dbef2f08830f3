"""The recipe's smoke run: dial tones, on a tiny Whisper."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import yaml
from transformers import WhisperForConditionalGeneration

from hf_distill import load_predictor
from hf_distill.cli import main
from recipes.whisper import smoke_data
from tests.speech import RATE, make_speech_processor, make_whisper

RECIPE = Path(smoke_data.__file__).parent
CONFIG, SMOKE = RECIPE / "config.yaml", RECIPE / "smoke.yaml"


@pytest.mark.long
def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    smoke_data.write_data(Path("data"), 48, 8, longest=2, rate=RATE)
    make_whisper(init_std=0.2).save_pretrained("pretrained")
    make_speech_processor().save_pretrained("pretrained")
    common = ["--disable_tqdm", "true", "--max_target_length", "11"]
    as_teacher = {"model_name_or_path": "pretrained", "output_dir": "out/teacher", "stages": "null"}
    as_teacher |= {
        "teacher_model_name_or_path": "null",
        "share_encoder": "false",
        "targets": "given",
        "max_wer": "null",
    }
    as_teacher |= {"alpha_kl": "0", "learning_rate": "1e-2", "max_steps": "150"}
    options = [word for name, value in as_teacher.items() for word in (f"--{name}", value)]
    assert main(["train", str(CONFIG), str(SMOKE), *common, *options]) == 0
    assert main(["train", str(CONFIG), str(SMOKE), *common, "--max_steps", "20", "--max_wer", "1.0"]) == 0
    measured = json.loads(Path("out/student/test_results.json").read_text())
    assert measured["test_loss_kl"] > 0
    student = WhisperForConditionalGeneration.from_pretrained("out/student")
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 1)
    assert load_predictor("out/student").predict(["data/test/0.wav"])[0].keys() == {"text"}


def test_the_tones(tmp_path):
    """The strongest two frequencies of a digit are those of its key."""
    smoke_data.write_data(tmp_path, num_train=3, num_test=2)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    samples, rate = soundfile.read(tmp_path / rows[0]["audio"])
    assert rate == 16_000
    assert 0.1 < np.abs(samples).max() <= 1
    for digit, frequencies in (("1", (697, 1209)), ("6", (770, 1477)), ("0", (941, 1336))):
        tones = smoke_data.dial(digit, np.random.default_rng(0))
        spectrum = np.abs(np.fft.rfft(tones, 16_000 * 4))
        low = np.argmax(spectrum[: 1000 * 4]) / 4
        high = np.argmax(spectrum[1000 * 4 : 2000 * 4]) / 4 + 1000
        assert (low, high) == pytest.approx(frequencies, abs=5)


def test_the_smoke_run_changes_models_data_and_sizes_only():
    changed = yaml.safe_load(SMOKE.read_text()).keys()
    assert not {name for name in changed if name.startswith("alpha_")}
    assert not changed & {"share_encoder", "temperature", "targets"}
