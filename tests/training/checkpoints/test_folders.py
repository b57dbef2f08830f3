"""A checkpoint is complete or absent, a resumed training gives the same weights, and NaN is never saved."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import make_student
from hf_distill.training.checkpoints import folders
from tests.conftest import make_model, make_rows
from tests.processes import run_python

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}


def make_pair(head="classification", **options):
    return make_model("bert", head, **options), make_student(make_model("bert", head, seed=1))


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    monkeypatch.setattr(folders.logger, "warning", seen.append)
    return seen


@pytest.mark.long
@pytest.mark.parametrize("head", ["classification", "mlm"])
def test_ten_kills_and_resumes(tmp_path, head):
    """A training killed anywhere gives the same weights, with dropout, accumulation and (for "mlm") dynamic masks."""
    script = Path(__file__).with_name("kill_and_resume.py")
    run = run_python([script, tmp_path / "runs", head, "10"], timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert [result["identical"] for result in results] == [True] * 10
    assert not any(result["left_over"] for result in results)
    assert len({result["resumed_from"] for result in results}) > 3  # they were killed at different moments


def test_checkpoint_that_fails_half_way(make_trainer, monkeypatch):
    teacher, student = make_pair()
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=3, **EVERY_STEP)
    save_rng_state = trainer._save_rng_state

    def fail_in_step_2(output_dir):
        if trainer.state.global_step == 2:
            raise OSError("No space left on device")
        save_rng_state(output_dir)

    monkeypatch.setattr(trainer, "_save_rng_state", fail_in_step_2)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    output_dir = trainer.args.output_dir
    assert get_last_checkpoint(output_dir).endswith("checkpoint-1")
    monkeypatch.setattr(trainer, "_save_rng_state", save_rng_state)
    trainer.train(resume_from_checkpoint=True)
    assert sorted(os.listdir(output_dir)) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_the_best_checkpoint_and_the_number_of_them(make_trainer):
    teacher, student = make_pair()
    rows = make_rows("classification")
    trainer = make_trainer(
        student,
        teacher,
        rows,
        rows,
        num_train_epochs=5,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=2,
        learning_rate=1e-2,
    )
    trainer.train()
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(losses, key=losses.get)
    assert trainer.state.best_model_checkpoint == f"{trainer.args.output_dir}/checkpoint-{best}"
    kept = {int(name.rpartition("-")[2]) for name in os.listdir(trainer.args.output_dir)}
    assert kept == {best, 5} if best != 5 else {4, 5}
    with open(f"{trainer.args.output_dir}/checkpoint-5/trainer_state.json") as file:
        assert json.load(file)["best_model_checkpoint"] == trainer.state.best_model_checkpoint
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_a_checkpoint_is_replaced(make_trainer):
    teacher, student = make_pair()
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=1, **EVERY_STEP)
    trainer.train()
    marker = Path(trainer.args.output_dir, "checkpoint-1", "marker")
    marker.touch()
    trainer.train()
    assert os.listdir(trainer.args.output_dir) == ["checkpoint-1"]
    assert not marker.exists()


def test_resume_with_another_teacher_and_other_losses(make_trainer, warnings):
    teacher, student = make_pair()
    rows = make_rows("classification")
    make_trainer(student, teacher, rows, max_steps=1, **EVERY_STEP).train()
    other, student = make_pair(seed=7)
    trainer = make_trainer(student, other, rows, max_steps=2, temperature=3.0, alpha_kl=1.0, **EVERY_STEP)
    trainer.train(resume_from_checkpoint=True)
    (warning,) = warnings
    assert "alpha_kl was 5.0 and is 1.0; kl_temperature was 2.0 and is 3.0; teacher_fingerprint was" in warning
    assert "alpha_task" not in warning


def test_resume_with_a_teacher_that_has_moved(make_trainer, warnings, tmp_path):
    rows = make_rows("classification")
    for max_steps, folder in ((1, "here"), (2, "there")):
        teacher, student = make_pair()
        teacher.save_pretrained(tmp_path / folder)
        trainer = make_trainer(student, str(tmp_path / folder), rows, max_steps=max_steps, **EVERY_STEP)
        trainer.train(resume_from_checkpoint=max_steps > 1)
        state = Path(trainer.args.output_dir, f"checkpoint-{max_steps}", "distillation_state.json").read_text()
        assert json.loads(state)["teacher"] == folder
    assert warnings == []


def test_resume_with_the_same(make_trainer, warnings):
    rows = make_rows("classification")
    for max_steps in (1, 2):
        teacher, student = make_pair()
        trainer = make_trainer(student, teacher, rows, max_steps=max_steps, **EVERY_STEP)
        trainer.train(resume_from_checkpoint=max_steps > 1)
    assert trainer.state.global_step == 2
    assert warnings == []


def test_resume_from_a_checkpoint_of_trainers_own(make_trainer, warnings):
    teacher, student = make_pair()
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=1, **EVERY_STEP)
    trainer.train()
    os.remove(f"{trainer.args.output_dir}/checkpoint-1/distillation_state.json")
    trainer.train(resume_from_checkpoint=True)
    assert "so its settings cannot be compared" in warnings[0]


class Spoil(TrainerCallback):
    """Sets a weight of the student to NaN at the beginning or at the end of a step."""

    def __init__(self, step, at_its_end=False, value=float("nan")):
        self.step, self.at_its_end, self.value = step, at_its_end, value

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step and not self.at_its_end:
            self.spoil(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step and self.at_its_end:
            self.spoil(model)

    def spoil(self, model):
        with torch.no_grad():
            model.classifier.bias[0] = self.value


@pytest.mark.parametrize(("logging_steps", "save_steps"), [(1, 10), (10, 2), (10, 10), (2, 2)])
def test_a_loss_that_is_not_finite_stops_the_training(make_trainer, logging_steps, save_steps):
    """The error names the step where NaN appeared, whether logging, saving or the end comes first."""
    teacher, student = make_pair()
    trainer = make_trainer(
        student,
        teacher,
        make_rows("classification"),
        max_steps=6,
        save_strategy="steps",
        save_steps=save_steps,
        logging_steps=logging_steps,
        per_device_train_batch_size=4,
        trainer_options={"callbacks": [Spoil(step=3)]},
    )
    saved = "There is no earlier checkpoint" if save_steps == 10 else r"The last checkpoint is .*checkpoint-2"
    message = rf"loss_kl and loss_task not finite in step 3: the training stops.*{saved}"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    saved = [name for name in os.listdir(trainer.args.output_dir) if name.startswith("checkpoint")]
    assert saved == ([] if save_steps == 10 else ["checkpoint-2"])


def test_a_weight_that_is_not_finite_is_not_saved(make_trainer):
    """NaN weights after a gradient overflow are found, although the loss of that step was finite."""
    teacher, student = make_pair()
    callbacks = {"callbacks": [Spoil(step=2, at_its_end=True)]}
    rows = make_rows("classification")
    trainer = make_trainer(student, teacher, rows, max_steps=4, trainer_options=callbacks, **EVERY_STEP)
    with pytest.raises(FloatingPointError, match=r"weights are not finite after step 2.*checkpoint is .*checkpoint-1"):
        trainer.train()
    assert os.listdir(trainer.args.output_dir) == ["checkpoint-1"]


def test_training_again_after_a_loss_that_was_not_finite(make_trainer):
    teacher, student = make_pair()
    spoil = Spoil(step=2)
    rows = make_rows("classification")
    trainer = make_trainer(student, teacher, rows, max_steps=3, trainer_options={"callbacks": [spoil]}, **EVERY_STEP)
    with pytest.raises(FloatingPointError, match="in step 2"):
        trainer.train()
    trainer.remove_callback(spoil)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_a_just_in_time_checkpoint_that_was_interrupted(make_trainer, warnings):
    """`Trainer` makes a checkpoint's folder before saving it. A resume uses the last complete checkpoint."""
    teacher, student = make_pair()
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=3, **EVERY_STEP)
    trainer.train()
    output_dir = Path(trainer.args.output_dir)
    interrupted = output_dir / "checkpoint-30"
    interrupted.mkdir()
    (interrupted / "checkpoint-is-incomplete.txt").write_text("Checkpoint started at step 30 and in progress...")
    assert get_last_checkpoint(str(output_dir)) == str(interrupted)
    teacher, student = make_pair()
    resumed = make_trainer(student, teacher, make_rows("classification"), max_steps=4, **EVERY_STEP)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert any(f"{interrupted} is incomplete and is skipped" in warning for warning in warnings)
    with pytest.raises(ValueError, match="checkpoint-30 is not a complete checkpoint"):
        resumed.train(resume_from_checkpoint=str(interrupted))


@pytest.mark.parametrize("signalled", ["in step 2", "in step 2, and killed"])
def test_just_in_time_checkpoints(make_trainer, monkeypatch, signalled):
    """`enable_jit_checkpoint` saves a checkpoint that can be resumed, or nothing that looks like one."""
    rows, killed = make_rows("classification"), signalled.endswith("killed")

    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                (callback,) = (c for c in trainer.callback_handler.callbacks if hasattr(c, "jit_manager"))
                callback.jit_manager.is_checkpoint_requested = True

    teacher, student = make_pair()
    options = {**EVERY_STEP, "save_strategy": "no", "max_steps": 4, "enable_jit_checkpoint": True}
    trainer = make_trainer(student, teacher, rows, trainer_options={"callbacks": [Signal()]}, **options)
    if killed:
        monkeypatch.setattr(trainer, "_save_rng_state", lambda output_dir: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        trainer.train()
    except KeyboardInterrupt:
        assert killed
    assert trainer.state.global_step < 4
    whole = folders.last_whole_checkpoint(trainer.args.output_dir)
    assert whole is None if killed else not os.path.isfile(f"{whole}/checkpoint-is-incomplete.txt")
    if not killed:
        teacher, student = make_pair()
        resumed = make_trainer(student, teacher, rows, **options)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 4


def test_resume_without_any_checkpoint(make_trainer):
    teacher, student = make_pair()
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=1)
    with pytest.raises(ValueError, match="There is no checkpoint in output_dir to resume from"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("max_steps", [2, 3, 4])
def test_resuming_from_the_last_step_makes_no_further_one(make_trainer, tmp_path, max_steps):
    """Also within an epoch, where `Trainer` makes one more step."""
    options = {"per_device_train_batch_size": 4, "max_steps": max_steps, "save_strategy": "steps", "save_steps": 1}
    trainers = []
    for checkpoint in (None, str(tmp_path / "out" / f"checkpoint-{max_steps}")):
        teacher = make_model("bert", "classification")
        trainers.append(make_trainer(make_student(teacher), teacher, make_rows("classification"), **options))
        trainers[-1].train(resume_from_checkpoint=checkpoint)
        assert trainers[-1].state.global_step == max_steps
    for name, weight in trainers[0].model.state_dict().items():
        assert torch.equal(weight, trainers[1].model.state_dict()[name]), name
