"""Audio classifiers from data to service, on tiny models and recordings."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoModelForAudioClassification,
    pipeline,
)

from hf_distill import (
    AudioClassificationArguments,
    DistillationTrainingArguments,
    encode_sounds,
    evaluate_model,
    export_model,
    load_labelled_sounds,
    load_predictor,
    load_unlabelled_sounds,
    train_model,
)
from hf_distill.deployment.json_inputs import from_json, to_json
from hf_distill.deployment.parity_inputs import built_in_inputs
from hf_distill.deployment.predictor import predictor_of
from hf_distill.evaluation.benchmark_inputs import lengths_to_measure
from hf_distill.tasks.registry import TASKS, task_of
from tests.serving.running import RunningService
from tests.sounds import PITCHES, RATE, make_extractor, make_sound, make_wav2vec2, write_sounds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with recordings in `train` and `test`, and the untrained model `pretrained`."""
    folder = tmp_path_factory.mktemp("sounds")
    datasets.config.HF_DATASETS_CACHE, before = str(folder / "cache"), datasets.config.HF_DATASETS_CACHE
    write_sounds(folder / "train", 60)
    write_sounds(folder / "test", 15, seed=100, rate=2 * RATE)
    torch.manual_seed(0)
    make_wav2vec2(initializer_range=0.1).save_pretrained(folder / "pretrained")
    make_extractor().save_pretrained(folder / "pretrained")
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


def train(folder, output, training=None, **task):
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "num_train_epochs": 8,
        "save_strategy": "no",
    }
    training = DistillationTrainingArguments(str(folder / output), **{**options, **(training or {})})
    return train_model(AudioClassificationArguments(**{"overwrite": True, "max_seconds": 0.1, **task}), training)


@pytest.fixture(scope="module")
def teacher(folder):
    """A classifier that was trained on labels, in `teacher`."""
    files = {"train_file": str(folder / "train"), "test_file": str(folder / "test")}
    train(folder, "teacher", model_name_or_path=str(folder / "pretrained"), **files)
    return folder / "teacher"


def test_the_same_predictions_from_training_to_service(folder, teacher, tmp_path):
    results = json.loads((teacher / "test_results.json").read_text())
    assert results["test_accuracy"] > 0.9
    config = AutoModelForAudioClassification.from_pretrained(teacher).config
    assert config.id2label == dict(enumerate(PITCHES))
    assert config.task_options["task"] == "audio-classification"
    assert config.task_options["max_seconds"] == 0.1

    files = sorted(map(str, (folder / "test").rglob("*.wav")))
    predictor = load_predictor(teacher)
    assert (predictor.head, predictor.reads) == ("audio classification", "audio")
    predicted = predictor.predict(files)
    accuracy = np.mean([own["label"] in file for own, file in zip(predicted, files, strict=True)])
    assert results["test_accuracy"] == pytest.approx(accuracy)
    assert evaluate_model(teacher, folder / "test", teacher=teacher)["agreement"] == 1

    whole = [make_sound(pitch, seconds=0.1) for pitch in PITCHES]
    of_transformers = pipeline("audio-classification", str(teacher), device="cpu")(whole)
    for own, other in zip(predictor.predict(whole), of_transformers, strict=True):
        assert own == {"label": other[0]["label"], "score": pytest.approx(other[0]["score"], abs=1e-5)}

    expected = predictor.logits(files)
    for format in ("onnx", "onnx-int8"):
        export = export_model(teacher, tmp_path / format, format, texts=files, min_agreement=0)
        logits = load_predictor(export.folder).logits(files)
        np.testing.assert_allclose(logits, expected, atol=1e-4 if format == "onnx" else 0.5)
        assert evaluate_model(export.folder, folder / "test")["accuracy"] == pytest.approx(accuracy, abs=0.1)
    manifest = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert manifest["preprocessing"] == {"rate": RATE, "num_samples": 200, "normalize": True, "has_mask": False}

    with RunningService(tmp_path, tmp_path / "onnx-int8", "--workers", "1") as service:
        contents = [Path(file).read_bytes() for file in files[:3]]
        answers = [service.post(content, **{"content-type": "audio/wav"}).json for content in contents]
        assert answers == load_predictor(tmp_path / "onnx-int8", threads=1).predict(contents)
        refused = service.post(contents[0][:100], **{"content-type": "audio/wav"})
        assert (refused.status, refused.json["detail"]) == (422, "Recording 0: is truncated: replace or remove it.")


def test_from_a_teacher_alone(folder, teacher):
    losses = {"teacher_model_name_or_path": str(teacher), "alpha_task": 0.0, "alpha_cos": 0.0}
    trainer = train(folder, "student", losses, unlabelled_file=str(folder / "train"))
    assert "teacher_logits" in trainer.train_dataset.column_names
    assert trainer.model.config.num_hidden_layers == 1
    assert evaluate_model(folder / "student", folder / "test", teacher=teacher)["agreement"] > 0.7


def test_hidden_states_and_lora(folder, teacher):
    options = {"train_file": str(folder / "train"), "lora_rank": 2}
    train(folder, "student", {"teacher_model_name_or_path": str(teacher), "max_steps": 2}, **options)
    assert AutoModelForAudioClassification.from_pretrained(folder / "student").config.num_hidden_layers == 1


def test_a_model_of_spectrograms(folder, tmp_path):
    """Its predictor needs transformers, and it has no export."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ASTForAudioClassification(ASTConfig(num_labels=3, max_length=32, num_mel_bins=16, patch_size=8, **sizes))
    extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=32)
    sounds = [make_sound("low", rate=16000), make_sound("high", seconds=0.3, rate=16000)]
    with torch.inference_mode():
        expected = model.eval()(**extractor(sounds, sampling_rate=16000, return_tensors="pt")).logits
    np.testing.assert_allclose(predictor_of(model, extractor, "ast").logits(sounds), expected, atol=1e-5)
    rows = encode_sounds(load_labelled_sounds(folder / "test")[0], extractor)
    assert rows[0]["input_values"].shape == (32, 16)
    with pytest.raises(ValueError, match="ASTFeatureExtractor makes spectrograms, which exports without transformers"):
        export_model(model, tmp_path / "export", "onnx", tokenizer=extractor)


def test_attention_masks(folder):
    """A model that gets a mask does not hear the padding."""
    model = make_wav2vec2(feat_extract_norm="layer", do_stable_layer_norm=True).eval()
    predictor = predictor_of(model, make_extractor(has_mask=True), "masked")
    assert predictor.encoder.inputs == ["input_values", "attention_mask"]
    sound = make_sound("low", seconds=0.08)
    with torch.inference_mode():
        alone = model(**make_extractor(has_mask=True)([sound], sampling_rate=RATE, return_tensors="pt")).logits
    np.testing.assert_allclose(predictor.logits([sound]), alone, atol=1e-4)


def test_what_the_benchmark_measures(teacher):
    predictors = {"teacher": load_predictor(teacher)}
    assert lengths_to_measure(predictors, None) == ["audio"]
    with pytest.raises(ValueError, match=r"lengths=\[16\] has no effect on models that read audio: leave it out"):
        lengths_to_measure(predictors, [16])
    sounds = built_in_inputs("audio")
    np.testing.assert_array_equal(from_json(json.loads(json.dumps(to_json(sounds[0])))), sounds[0])


def test_recordings_in_tables(folder, tmp_path):
    files = sorted((folder / "train").rglob("*.wav"))[:25]
    (tmp_path / "data.csv").write_text("\n".join(["sound,pitch", *(f"{file},{file.parent.name}" for file in files)]))
    rows, names = load_labelled_sounds(tmp_path / "data.csv", "sound", "pitch")
    assert (rows.column_names, names) == (["audio", "sha256", "labels"], ["high", "low"])
    contents = [{"bytes": file.read_bytes(), "path": None} for file in files]
    as_audio = datasets.Dataset.from_dict({"audio": contents}).cast_column("audio", datasets.Audio(decode=False))
    as_audio.to_parquet(tmp_path / "data.parquet")  # with the feature in its metadata, as on the Hub
    assert load_unlabelled_sounds(tmp_path / "data.parquet")["sha256"] == rows["sha256"]


def test_bad_recordings_stop_a_training_before_it_starts(folder, tmp_path):
    write_sounds(tmp_path / "sounds", 6)
    bad = next(iter((tmp_path / "sounds" / "low").glob("*.wav")))
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"sounds has 1 recording that cannot be read: {bad} is truncated"):
        train(folder, "bad", model_name_or_path=str(folder / "pretrained"), train_file=str(tmp_path / "sounds"))
    assert not (folder / "bad").exists()
    with pytest.raises(ValueError, match=r"max_seconds=0 must be above 0"):
        AudioClassificationArguments(max_seconds=0)


def test_its_models_are_not_for_texts():
    config = make_wav2vec2(1).config
    config.architectures = ["Wav2Vec2ForSequenceClassification"]
    assert task_of(config, "model") is TASKS["audio-classification"]
    with pytest.raises(ValueError, match="model is a model for audio-classification, not for text-classification"):
        task_of(config, "model", "text-classification")
