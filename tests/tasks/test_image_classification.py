"""Image classifiers from data to service, on tiny models and images."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTImageProcessorPil, pipeline

from hf_distill import (
    DistillationTrainingArguments,
    ImageClassificationArguments,
    evaluate_model,
    export_model,
    load_predictor,
    train_model,
)
from hf_distill.cli import main
from hf_distill.evaluation.classification import top_k_accuracy
from hf_distill.tasks.logs import LogsOfShortTraining
from hf_distill.tasks.registry import TASKS
from tests.images import COLOURS, make_processor, make_vit, write_images
from tests.serving.running import RunningService


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images in `train` and `test`, and the untrained model `pretrained`."""
    folder = tmp_path_factory.mktemp("images")
    datasets.config.HF_DATASETS_CACHE, before = str(folder / "cache"), datasets.config.HF_DATASETS_CACHE
    write_images(folder / "train", 60)
    write_images(folder / "test", 15, seed=100)
    torch.manual_seed(0)
    make_vit(4).save_pretrained(folder / "pretrained")
    make_processor().save_pretrained(folder / "pretrained")
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


def train(folder, output, training=None, **task):
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 3e-3,
        "num_train_epochs": 5,
        "save_strategy": "no",
    }
    training = DistillationTrainingArguments(str(folder / output), **{**options, **(training or {})})
    return train_model(ImageClassificationArguments(**{"overwrite": True, **task}), training)


@pytest.fixture(scope="module")
def teacher(folder):
    """A classifier that was trained on labels, in `teacher`."""
    files = {"train_file": str(folder / "train"), "test_file": str(folder / "test")}
    train(folder, "teacher", model_name_or_path=str(folder / "pretrained"), **files)
    return folder / "teacher"


def of_teacher(teacher, **losses):
    return {"teacher_model_name_or_path": str(teacher), **losses}


def test_the_same_predictions_from_training_to_service(folder, teacher, tmp_path, capsys):
    results = json.loads((teacher / "test_results.json").read_text())
    assert results["test_accuracy"] > 0.9
    config = AutoModelForImageClassification.from_pretrained(teacher).config
    assert config.id2label == dict(enumerate(COLOURS))
    assert config.task_options["task"] == "image-classification"

    files = sorted(map(str, (folder / "test").rglob("*.png")))
    predictor = load_predictor(teacher)
    predicted = predictor.predict(files)
    accuracy = np.mean([own["label"] in file for own, file in zip(predicted, files, strict=True)])
    assert results["test_accuracy"] == pytest.approx(accuracy)
    of_transformers = pipeline("image-classification", str(teacher), device="cpu")(files)
    for own, other in zip(predicted, of_transformers, strict=True):
        assert own == {"label": other[0]["label"], "score": pytest.approx(other[0]["score"], abs=1e-5)}
    assert main(["evaluate", str(teacher), "--data", str(folder / "test"), "--teacher", str(teacher)]) == 0
    assert "agreement                   1.0000" in capsys.readouterr().out

    expected = predictor.logits(files)
    for format in ("onnx", "onnx-int8"):
        export = export_model(teacher, tmp_path / format, format, texts=files, min_agreement=0)
        logits = load_predictor(export.folder).logits(files)
        np.testing.assert_allclose(logits, expected, atol=1e-4 if format == "onnx" else 0.5)
        assert evaluate_model(export.folder, folder / "test")["accuracy"] == pytest.approx(accuracy, abs=0.1)

    with RunningService(tmp_path, tmp_path / "onnx-int8", "--workers", "1") as service:
        contents = [Path(file).read_bytes() for file in files[:4]]
        answers = [service.post(content, **{"content-type": "image/png"}).json for content in contents]
        assert answers == load_predictor(tmp_path / "onnx-int8", threads=1).predict(contents)


@pytest.mark.parametrize("stores", [True, False])
def test_a_student_cut_from_its_teacher(folder, teacher, stores):
    losses = of_teacher(teacher, alpha_cos=0.0, num_train_epochs=2)
    trainer = train(folder, "student", losses, train_file=str(folder / "train"), store_teacher_targets=stores)
    assert ("teacher_logits" in trainer.train_dataset.column_names) == stores
    assert trainer.model.config.distilled_from["layers"] == [0, 2]
    assert evaluate_model(folder / "student", folder / "test", teacher=teacher)["accuracy"] > 0.6


def test_stored_and_live_teachers_teach_the_same(folder, teacher):
    weights = []
    for stores in (True, False):
        losses = of_teacher(teacher, alpha_cos=0.0, max_steps=3)
        train(folder, "student", losses, train_file=str(folder / "train"), store_teacher_targets=stores)
        weights.append(load_file(folder / "student" / "model.safetensors"))
    for name, own in weights[0].items():
        torch.testing.assert_close(own, weights[1][name], atol=1e-5, rtol=0)


def test_from_a_teacher_alone(folder, teacher):
    losses = of_teacher(teacher, alpha_task=0.0, alpha_cos=0.0)
    train(folder, "student", losses, unlabelled_file=str(folder / "train"))
    assert evaluate_model(folder / "student", folder / "test", teacher=teacher)["agreement"] > 0.7


def test_hidden_states_and_lora(folder, teacher):
    """The default losses, which compare the hidden states of all patches."""
    options = {"train_file": str(folder / "train"), "lora_rank": 2}
    train(folder, "student", of_teacher(teacher, num_train_epochs=1), **options)
    model = AutoModelForImageClassification.from_pretrained(folder / "student")
    assert model.config.num_hidden_layers == 2


def test_a_teacher_that_reads_larger_images(folder, teacher):
    large = folder / "large"
    make_vit(2, image_size=24).save_pretrained(large)
    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(large)
    options = {"train_file": str(folder / "train"), "model_name_or_path": str(teacher)}
    with pytest.raises(ValueError, match="large prepares images in another way than the student"):
        train(folder, "student", of_teacher(large, alpha_cos=0.0), store_teacher_targets=False, **options)
    trainer = train(folder, "student", of_teacher(large, alpha_cos=0.0, max_steps=1), **options)
    rows = trainer.train_dataset
    expected = load_predictor(large).logits(sorted(map(str, (folder / "train").rglob("*.png"))))
    np.testing.assert_allclose(np.stack(rows["teacher_logits"]), expected, atol=1e-5)
    assert rows[0]["pixel_values"].shape == (3, 16, 16)


def test_a_stopped_training_goes_on_as_if_it_had_not(folder, teacher):
    options = {"train_file": str(folder / "train"), "model_name_or_path": str(folder / "pretrained")}
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "dataloader_num_workers": 2}
    train(folder, "whole", steps, **options)

    class StopError(Exception):
        pass

    def stop_at_5(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogsOfShortTraining, "on_step_begin", stop_at_5)
        with pytest.raises(StopError):
            train(folder, "stopped", steps, **options)
    train(folder, "stopped", steps, overwrite=False, **options)
    one, other = (load_file(folder / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_model_is_loaded(folder):
    files = {"train_file": str(folder / "train"), "validation_file": str(folder / "test")}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = train(folder, "best", steps | best, model_name_or_path=str(folder / "pretrained"), **files)
    assert trainer.state.best_global_step < 4  # that with the largest loss
    one = load_file(trainer.state.best_model_checkpoint + "/model.safetensors")
    other = load_file(folder / "best" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_images_stop_a_training_before_it_starts(folder, tmp_path):
    write_images(tmp_path / "photos", 6)
    bad = next(iter((tmp_path / "photos" / "red").glob("*.png")))
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"photos has 1 image that cannot be read: {bad} is damaged or truncated"):
        train(folder, "bad", model_name_or_path=str(folder / "pretrained"), train_file=str(tmp_path / "photos"))
    assert not (folder / "bad").exists()
    with pytest.raises(ValueError, match="problem_type='photo' must be one of single_label_classification"):
        ImageClassificationArguments(problem_type="photo")


def test_metrics_of_many_classes():
    task, rows = TASKS["image-classification"], datasets.Dataset.from_dict({"labels": [0, 1, 2, 6]})
    logits = -np.abs(np.arange(7.0) - np.array([0, 0, 0, 0])[:, None])
    measured = task.metrics([*logits], rows, {"problem_type": "single_label_classification"})
    assert measured["top_5_accuracy"] == top_k_accuracy(logits, [0, 1, 2, 6], 5) == 0.75
    assert measured["accuracy"] == 0.25
    assert "top_5_accuracy" not in task.metrics([*logits[:3, :5]], rows.select(range(3)), {})


def test_words(folder):
    task = TASKS["image-classification"]
    rows, classes = task.load(str(folder / "test"), task.reading_defaults() | task.complete({}, []), None)
    assert task.words_of_input(rows, 0) == str(min((folder / "test" / "blue").glob("*.png")))
    assert task.words_of_label(rows, 0, {}, classes) == "blue"
