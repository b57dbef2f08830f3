"""A training in stages: what each trains on, and that it continues after a kill at any point, bit for bit."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_distill import DistillationTrainer, TrainingRun
from tests.tasks import test_text_classification
from tests.tasks.test_text_classification import assert_equal_weights, distil, folder, results, teacher, weights

_own_cache = test_text_classification._own_cache
__all__ = ["_own_cache", "folder", "teacher"]

INNER = {"name": "inner", "alpha_kl": 0.0, "alpha_task": 0.0, "max_steps": 3}
STAGES = [INNER, {"name": "predictions", "alpha_cos": 0.0, "learning_rate": 1e-3}]


def run(folder, stages=STAGES, task=None, **options):
    task = {"stages": stages, "test_file": str(folder / "test.csv"), "overwrite": False, **(task or {})}
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "temperature": 3.0} | options
    return distil(folder, task, **options)


@pytest.fixture(autouse=True)
def dropout(teacher):
    """Gives the students dropout, which must be drawn the same after a kill."""
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.1}))


def by_hand(folder):
    """The same as two trainings: the second starts with the model of the first."""
    one = {name: value for name, value in INNER.items() if name != "name"}
    shared = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    distil(folder, {"store_teacher_targets": False}, **(shared | one))
    (folder / "out").rename(folder / "first")
    second = {"model_name_or_path": str(folder / "first")}
    distil(folder, second, alpha_cos=0.0, learning_rate=1e-3, temperature=3.0, **shared)
    expected = weights(folder / "out")
    shutil.rmtree(folder / "out")
    return expected


def test_stages(folder, caplog):
    expected = by_hand(folder)
    trainer = run(folder)
    assert {name: weight for name, weight in trainer.loss_weights.items() if weight} == {"kl": 5.0, "task": 2.0}
    assert_equal_weights(weights(folder / "out"), expected)
    inner = folder / "out" / "stage-1-inner"
    assert_equal_weights(weights(inner), weights(folder / "first"))
    assert {path.name for path in inner.iterdir()} >= {"checkpoint-3", "train_results.json", "README.md"}
    assert not (inner / "test_results.json").exists()
    assert "test_accuracy" in results(folder, "test")
    assert AutoModelForSequenceClassification.from_pretrained(folder / "out").config.distilled_from["layers"] == [0, 2]
    card = (folder / "out" / "README.md").read_text()
    assert "loss = 5 * L_kl + 2 * L_task\n" in card
    assert "| stage 1, inner | loss = 1.0 * L_cos; 3 steps; learning rate 0.002 |" in card

    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    assert run(folder) is None
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == before
    assert caplog.text.count("already has a model trained with the same settings") == 2


def kill(monkeypatch, stage, step):
    """Stops a run: before a step of a stage, or before a stage is recorded as finished."""
    train, finish = DistillationTrainer.training_step, TrainingRun.finish
    folder = {"inner": "stage-1-inner", "predictions": "out"}[stage]

    def training_step(self, *args):
        if self.args.output_dir.endswith(folder) and self.state.global_step == step:
            raise KeyboardInterrupt
        return train(self, *args)

    def finish_or_not(self):
        if self.args.output_dir.endswith(folder) and step == "finish":
            raise KeyboardInterrupt
        finish(self)

    monkeypatch.setattr(DistillationTrainer, "training_step", training_step)
    monkeypatch.setattr(TrainingRun, "finish", finish_or_not)


MOMENTS = [
    ("inner", 0),
    ("inner", 2),
    ("inner", "finish"),
    ("predictions", 0),
    ("predictions", 2),
    ("predictions", "finish"),
]


def test_kill_and_resume(folder):
    """One run that is killed again and again, and one that is not."""
    run(folder)
    expected = weights(folder / "out"), weights(folder / "out" / "stage-1-inner")
    whole = results(folder, "test")["test_loss"]
    shutil.rmtree(folder / "out")
    for moment in MOMENTS:
        with pytest.MonkeyPatch.context() as patch:
            kill(patch, *moment)
            with pytest.raises(KeyboardInterrupt):
                run(folder)
    trainer = run(folder)
    assert trainer.steps_made == 0  # every step was made before the last kill
    assert_equal_weights(weights(folder / "out"), expected[0])
    assert_equal_weights(weights(folder / "out" / "stage-1-inner"), expected[1])
    assert results(folder, "test")["test_loss"] == whole


def test_changed_options(folder):
    """An error before any step, unless `overwrite` starts over."""
    distil(folder, {"overwrite": False}, max_steps=1, alpha_cos=0.0)
    with pytest.raises(ValueError, match=r"The stage 'inner' has to be trained, but .*out already has a training"):
        run(folder)
    run(folder, task={"overwrite": True})
    first = load_file(folder / "out" / "stage-1-inner" / "checkpoint-1" / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"stage-1-inner has a finished training with other settings: learning_rate was"
    ):
        run(folder, [{**INNER, "learning_rate": 0.1}, STAGES[1]])
    with pytest.raises(ValueError, match=r"out has a finished training with other settings: learning_rate was"):
        run(folder, [INNER, {**STAGES[1], "learning_rate": 0.1}])
    with pytest.raises(ValueError, match=r"The stage 'other' has to be trained, but .*out already has a training"):
        run(folder, [{**INNER, "name": "other"}, STAGES[1]])
    longer = run(folder, [INNER, {**STAGES[1], "max_steps": 5}], task={"resume": True})
    assert longer.steps_made == 1
    run(folder, [{**INNER, "learning_rate": 0.1}, STAGES[1]], task={"overwrite": True})
    second = load_file(folder / "out" / "stage-1-inner" / "checkpoint-1" / "model.safetensors")
    assert any((first[name] != second[name]).any() for name in first)


def test_errors_of_all_stages_come_first(folder):
    stages = [INNER, {"name": "predictions", "eval_strategy": "epoch"}]
    with pytest.raises(ValueError, match="Stage 'predictions': eval_strategy='epoch' needs validation data"):
        run(folder, stages)
    assert not (folder / "out").exists()
