"""The progress of a training."""

import re

import datasets
from transformers import ProgressCallback

from hf_distill import DistillationTrainer, DistillationTrainingArguments, show_progress
from hf_distill.progress.training import TrainingProgress
from tests.conftest import collate, make_model, make_rows


def make_trainer(folder, disable_tqdm=False, **options):
    data = datasets.Dataset.from_list(make_rows("classification", 8))
    teacher, student = (make_model("bert", "classification", seed) for seed in (0, 1))
    args = DistillationTrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        num_train_epochs=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=disable_tqdm,  # its default depends on the log level, which other tests change
        **options,
    )
    return DistillationTrainer(
        student, args, train_dataset=data, eval_dataset=data, data_collator=collate, teacher_model=teacher
    )


def test_lines_of_a_training(tmp_path, capsys):
    trainer = make_trainer(tmp_path, logging_steps=2, eval_strategy="epoch")
    show_progress(trainer)
    trainer.train()
    first, second, evaluated, last = (
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("step", "Training"))
    )
    assert re.fullmatch(
        r"step 2 of 4, \d:\d\d left: loss [\d.e-]+, learning_rate [\de.-]+, "
        r"loss_kl [\d.e-]+, loss_task [\d.e-]+, loss_cos [\d.e-]+",
        first,
    )
    assert second.startswith("step 4 of 4, 0:00 left: loss ")
    assert re.fullmatch(
        r"step 4 of 4, 0:00 left: eval_loss [\d.e-]+, eval_loss_kl [\d.e-]+, eval_loss_task [\d.e-]+, "
        r"eval_loss_cos [\d.e-]+",
        evaluated,
    )
    assert re.fullmatch(r"Training: 4 of 4 steps in \d:\d\d", last)
    trainer.evaluate()  # which is short
    trainer.predict(trainer.eval_dataset)
    assert "Evaluating" not in capsys.readouterr().err


def test_a_training_that_goes_on(tmp_path, capsys):
    """The time left is that of the steps that are made now."""
    make_trainer(tmp_path, save_steps=2, max_steps=2).train()
    trainer = make_trainer(tmp_path, max_steps=4)
    show_progress(trainer)
    capsys.readouterr()
    trainer.train(resume_from_checkpoint=True)
    assert "Training: 2 of 2 steps in" in capsys.readouterr().err


def test_without_bars_nothing_is_changed(tmp_path):
    trainer = make_trainer(tmp_path, disable_tqdm=True)
    before = list(trainer.callback_handler.callbacks)
    show_progress(trainer)
    assert trainer.callback_handler.callbacks == before
    trainer = make_trainer(tmp_path)
    show_progress(trainer)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert TrainingProgress in kinds
    assert ProgressCallback not in kinds
