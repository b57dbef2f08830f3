"""Speech recognition from data to service, on a tiny Whisper: the same transcripts at each stop."""

import json
import random
import sys
from pathlib import Path

import datasets
import jiwer
import numpy as np
import pytest
from transformers import WhisperForConditionalGeneration

from hf_distill import (
    DistillationTrainingArguments,
    SpeechRecognitionArguments,
    add_teacher_transcripts,
    evaluate_model,
    load_predictor,
    load_transcribed_sounds,
    train_model,
    write_report,
)
from hf_distill.cli import main
from hf_distill.evaluation import benchmark
from hf_distill.lengths import READING
from hf_distill.tasks import speech_recognition
from hf_distill.tasks.registry import TASKS
from tests.serving.running import RunningService
from tests.speech import make_speech_processor, make_whisper, write_recordings

TASK = TASKS["speech-recognition"]


def make_words(number, seed, longest=2):
    draw = random.Random(seed)
    return ["".join(draw.choices("abc", k=draw.randint(1, longest))) for _ in range(number)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the models `pretrained` and `teacher`, which was trained on `train`; and `test`."""
    folder = tmp_path_factory.mktemp("speech")
    datasets.config.HF_DATASETS_CACHE, before = str(folder / "cache"), datasets.config.HF_DATASETS_CACHE
    write_recordings(folder / "train", make_words(32, seed=0))
    write_recordings(folder / "test", make_words(8, seed=1), seed=100)
    make_whisper(init_std=0.2).save_pretrained(folder / "pretrained")
    make_speech_processor().save_pretrained(folder / "pretrained")
    options = {"num_train_epochs": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 16}
    train(folder, "teacher", options, model_name_or_path=str(folder / "pretrained"), test_file=data_of(folder, "test"))
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


def data_of(folder, part):
    return str(folder / part / "data.jsonl")


def train(folder, output, training=None, **task):
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    options |= {"learning_rate": 1e-3} | (training or {})
    if "num_train_epochs" in options:
        del options["max_steps"]
    task = {"train_file": data_of(folder, "train"), "max_target_length": 11, "overwrite": True, **task}
    arguments = DistillationTrainingArguments(str(folder / output), **options)
    return train_model(SpeechRecognitionArguments(**task), arguments)


def distil(folder, output, training=None, **task):
    return train(folder, output, {"teacher_model_name_or_path": str(folder / "teacher"), **(training or {})}, **task)


def test_the_same_transcripts_at_each_stop(folder, tmp_path):
    teacher, test = folder / "teacher", load_transcribed_sounds(data_of(folder, "test"))
    tested = json.loads((teacher / "test_results.json").read_text())
    assert tested["test_wer"] < 0.6
    files = [row["path"] for row in test["audio"]]
    texts = [own["text"] for own in load_predictor(teacher).predict(files)]
    assert len({*texts}) > 2
    assert jiwer.wer(test["target"][:], texts) == pytest.approx(tested["test_wer"])
    assert jiwer.cer(test["target"][:], texts) == pytest.approx(tested["test_cer"])
    found = evaluate_model(teacher, data_of(folder, "test"), teacher=teacher)
    assert [found[own] for own in TASK.quality] == pytest.approx([tested[f"test_{own}"] for own in TASK.quality])
    assert (found["wer_to_teacher"], found["same_as_teacher"]) == (0, 1)
    assert getattr(WhisperForConditionalGeneration.from_pretrained(teacher).config, READING) == {
        "task": "speech-recognition",
        "audio_column": "audio",
        "text_column": "text",
        "language": None,
        "max_wer": None,
        "max_target_length": 11,
        "targets": "given",
    }
    with RunningService(tmp_path, teacher, "--workers", "1") as service:
        contents = [Path(file).read_bytes() for file in files]
        assert [service.post(own, **{"content-type": "audio/wav"}).json["text"] for own in contents] == texts


def test_a_student_with_the_encoder_of_its_teacher(folder):
    """As Distil-Whisper: the encoder is frozen and runs once for both."""
    stages = [{"name": "student", "cut": {"num_layers": {"decoder": 1}}}]
    losses = {"share_encoder": True, "alpha_cos": 0.0, "temperature": 2.0}
    start = {"model_name_or_path": str(folder / "teacher"), "stages": stages}
    trainer = distil(folder, "student", losses, targets="teacher", test_file=data_of(folder, "test"), **start)
    assert trainer.state.log_history[-1]["test_loss_kl"] > 0
    student, teacher = (WhisperForConditionalGeneration.from_pretrained(folder / own) for own in ("student", "teacher"))
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 1)
    for own, other in zip(student.model.encoder.parameters(), teacher.model.encoder.parameters(), strict=True):
        assert own.equal(other)


def test_teachers_transcripts_are_filtered_by_their_error_rate(folder, tmp_path, caplog):
    """Of recordings that are longer than those of its training."""
    table = write_recordings(tmp_path, make_words(16, seed=3, longest=4))
    model, rows = WhisperForConditionalGeneration.from_pretrained(folder / "teacher"), load_transcribed_sounds(table)
    recordings = rows.remove_columns("target")
    written = add_teacher_transcripts(recordings, model, make_speech_processor(), max_target_length=11)["target"][:]
    right = [text for given, text in zip(rows["target"], written, strict=True) if given == text]
    assert 0 < len(right) < len(rows)
    filtered = {"max_wer": 0.0, "train_file": str(table)}
    trainer = distil(folder, "student", {"alpha_cos": 0.0}, targets="teacher", **filtered)
    found = make_speech_processor().batch_decode([row["labels"] for row in trainer.train_dataset], True)
    assert [text.strip() for text in found] == right
    assert f"{len(rows) - len(right)} of {len(rows)} transcripts by the teacher are left out" in caplog.text
    both = distil(folder, "student", {"alpha_cos": 0.0}, targets="both", **filtered)
    assert len(both.train_dataset) == len(rows) + len(right)


def test_recordings_without_transcripts(folder):
    losses = {"alpha_task": 1.0, "alpha_cos": 0.0}
    recordings = {"train_file": None, "unlabelled_file": str(folder / "train")}
    trainer = distil(folder, "student", losses, **recordings)
    assert trainer.state.global_step == 2
    from_texts = {"alpha_task": 1.0, "alpha_kl": 0.0, "alpha_cos": 0.0}
    alone = distil(folder, "student", from_texts, model_name_or_path=str(folder / "pretrained"), **recordings)
    assert alone.teacher is None


def test_stored_targets(folder):
    """They hold the most likely tokens and the sum of the others, so that the divergence is at most the live one."""
    live = distil(folder, "student", {"alpha_cos": 0.0, "logging_steps": 1})
    stored = distil(folder, "student", {"alpha_cos": 0.0, "logging_steps": 1}, store_teacher_targets=True)
    assert "teacher_top_ids" in stored.train_dataset.column_names
    own, other = stored.state.log_history[0], live.state.log_history[0]
    assert own["loss_task"] == pytest.approx(other["loss_task"])
    assert 0.7 * other["loss_kl"] < own["loss_kl"] < 1.001 * other["loss_kl"]


def test_adapters(folder):
    distil(folder, "student", {"alpha_cos": 0.0}, lora_rank=2)
    student = WhisperForConditionalGeneration.from_pretrained(folder / "student")
    assert not hasattr(student, "peft_config")
    assert (student.config.encoder_layers, student.config.decoder_layers) == (1, 1)


def test_report(folder, tmp_path, monkeypatch):
    sizes = {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: sizes)
    for name, value in {"BURST": 1, "BATCH_SIZES": (2,)}.items():
        monkeypatch.setattr(benchmark, name, value)
    models = folder / "teacher", folder / "teacher"
    report = write_report(*models, data_of(folder, "test"), tmp_path, threads=1, rounds=1)
    assert {"wer_normalized", "wer", "cer"} <= report["models"]["student"]["quality"].keys()
    page = (tmp_path / "report.md").read_text()
    assert "word error rate, normalized" in page


def test_commands(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    config = "task: speech-recognition\nteacher_model_name_or_path: teacher\ntrain_file: train/data.jsonl\n"
    config += "test_file: test/data.jsonl\noutput_dir: out\nuse_cpu: true\nreport_to: none\nmax_steps: 1\n"
    Path("config.yaml").write_text(config + "max_target_length: 11\nalpha_cos: 0.0\nsave_strategy: 'no'\n")
    assert main(["train", "config.yaml"]) == 0
    assert main(["evaluate", "out", "--data", "test/data.jsonl", "--teacher", "teacher"]) == 0
    assert "wer_normalized" in capsys.readouterr().out


def test_a_multilingual_model(folder, tmp_path):
    make_whisper(is_multilingual=True).save_pretrained(tmp_path)
    make_speech_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is multilingual: set language"):
        train(folder, "multilingual", model_name_or_path=str(tmp_path))
    train(folder, "multilingual", model_name_or_path=str(tmp_path), language="zh")
    config = WhisperForConditionalGeneration.from_pretrained(folder / "multilingual").generation_config
    assert (config.language, config.task) == ("zh", "transcribe")
    sound = np.zeros(100, np.float32)
    assert load_predictor(folder / "multilingual").predict([sound])[0].keys() == {"text"}


def test_options_that_contradict_each_other(folder):
    with pytest.raises(ValueError, match=r"max_wer has no effect .*: set targets=teacher"):
        SpeechRecognitionArguments(train_file="data.csv", max_wer=0.1)
    with pytest.raises(ValueError, match="max_wer=-1 must be 0 or more"):
        SpeechRecognitionArguments(train_file="data.csv", targets="teacher", max_wer=-1)
    with pytest.raises(ValueError, match="audio_column and text_column are both 'text'"):
        SpeechRecognitionArguments(train_file="data.csv", audio_column="text")
    with pytest.raises(ValueError, match="max_target_length=24 is more than the model can write: set at most 23"):
        train(folder, "bad", model_name_or_path=str(folder / "pretrained"), max_target_length=24)
    with pytest.raises(ValueError, match="targets='mine' must be one of given, teacher, both"):
        SpeechRecognitionArguments(train_file="data.csv", targets="mine")


def test_a_missing_package_stops_a_training_before_the_teacher_transcribes(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    monkeypatch.setattr(speech_recognition, "load_transcribed_sounds", lambda *own: pytest.fail("a file is read"))
    with pytest.raises(ImportError, match=r"jiwer is not installed: pip install 'hf_distill\[metrics\]'"):
        distil(folder, "no jiwer", targets="teacher", max_wer=0.1)
    assert not (folder / "no jiwer").exists()


def test_all_transcripts_by_a_bad_teacher_are_left_out():
    reading = TASK.reading_defaults() | {"max_wer": 0.1}
    with pytest.raises(ValueError, match=r"All 2 transcripts .* above max_wer=0.1; the best has 0.50: raise max_wer"):
        TASK.kept(["a b", "c"], ["a c", "b"], reading)
    assert TASK.kept(["A b.", "c", "", "d"], ["a b", "b", "x", ""], reading) == [0, 2]
