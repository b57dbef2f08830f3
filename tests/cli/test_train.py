"""`hf-distill train`"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import (
    AutoModelForSequenceClassification,
    DefaultFlowCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_distill.cli import main
from hf_distill.tasks.logs import LogsOfShortTraining
from tests.processes import run_on_two_processes
from tests.training.test_engines import TORCHRUN

DISTIL = """
model_name_or_path: null
teacher_model_name_or_path: teacher
"""


def test_train_and_evaluate(reviews, capsys):
    assert main(["train", "config.yaml", "--output_dir", "teacher"]) == 0
    logged = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in logged] == [f"step {step} of 4" for step in (1, 2, 3, 4)]
    (reviews / "distil.yaml").write_text(DISTIL)
    words = ["train", "config.yaml", "distil.yaml", "--output-dir", "student", "--max_steps", "2", "--optim", "sgd"]
    assert main(words) == 0
    assert AutoModelForSequenceClassification.from_pretrained("student").config.num_hidden_layers == 2
    assert json.loads(Path("student/train_results.json").read_text())["epoch"] == 0.25
    tested = json.loads(Path("student/test_results.json").read_text())

    capsys.readouterr()
    words = ["evaluate", "student", "--data", "test.csv", "--teacher", "teacher", "--output", "report"]
    assert main(words) == 0  # the columns come from the student's config
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said["rows"] == "16"
    assert float(said["accuracy"]) == pytest.approx(tested["test_accuracy"], abs=1e-4)
    assert {"f1", "agreement", "kl_to_teacher"} <= said.keys()
    assert Path("report/calibration.png").exists()


@pytest.mark.parametrize(
    ("given", "max_steps", "expected"),
    [(None, 4, 1), (None, 100, 5), (None, 10_000, 500), (None, 90_000, 500), (7, 100, 7)],
)
def test_how_often_a_training_logs(given, max_steps, expected):
    args = TrainingArguments(use_cpu=True, report_to="none", **({} if given is None else {"logging_steps": given}))
    state = TrainerState(max_steps=max_steps, logging_steps=int(args.logging_steps))
    logged = []
    for state.global_step in range(1, min(max_steps, 2 * expected) + 1):
        control = TrainerControl()
        for callback in (DefaultFlowCallback(), LogsOfShortTraining()):
            callback.on_step_end(args, state, control)
        if control.should_log:
            logged.append(state.global_step)
    assert logged == [step for step in (expected, 2 * expected) if step <= max_steps]
    assert state.logging_steps == args.logging_steps  # transformers compares them when a training is resumed


def test_a_training_that_shall_not_log():
    args = TrainingArguments(use_cpu=True, report_to="none", logging_strategy="no")
    control = TrainerControl()
    LogsOfShortTraining().on_step_end(args, TrainerState(max_steps=4, global_step=1), control)
    assert not control.should_log


def test_train_says_what_is_wrong(reviews, capsys):
    for words, message in (
        (["config.yaml", "--text_column", "text"], "train.csv has no column 'text', only 'review', 'mood'"),
        (["nothing.yaml"], "Config file not found"),
        (["config.yaml", "--model_name_or_path", "nowhere/at/all"], "nowhere/at/all"),
        (["--model_name_or_path", "pretrained"], "No training data"),
    ):
        assert main(["train", *words, "--output_dir", "out", "--use_cpu"]) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("hf-distill: ")
        assert message in error.splitlines()[-1]
        assert "Traceback" not in error
    (reviews / "wrong.yaml").write_text("lerning_rate: 1.0")
    assert main(["train", "config.yaml", "wrong.yaml"]) == 2
    assert "wrong.yaml has unknown options: lerning_rate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_code:
        main(["train", "config.yaml", "--lerning_rate", "1"])
    assert exit_code.value.code == 2
    assert capsys.readouterr().err == (
        "hf-distill train: unrecognized arguments: --lerning_rate 1. Did you mean --learning_rate? See hf-distill "
        "train --help.\n"
    )


def test_train_into_a_finished_folder(reviews, capsys, caplog):
    words = ["train", "config.yaml", "--output_dir", "out", "--save_strategy", "epoch"]
    assert main(words) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert main(words) == 0
    assert "out already has a model trained with the same settings" in caplog.text
    assert main([*words, "--learning_rate", "0.5"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "hf-distill: out has a finished training with other settings: learning_rate was 0.001 and is"
    )
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert main([*words, "--max_steps", "6", "--resume"]) == 0
    assert main([*words, "--learning_rate", "0.5", "--overwrite"]) == 0
    assert "| learning rate | 0.5," in Path("out/README.md").read_text()


@pytest.mark.long
def test_train_on_two_processes(reviews):
    """The command also runs as a module, as `accelerate launch -m` and `torchrun -m` start it."""
    words = ["-m", "hf_distill.cli", "train", "config.yaml", "--ddp_backend", "gloo"]
    own = {"HF_DATASETS_CACHE": str(reviews / "cache")}
    first = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **own},
    )
    results = Path("trainer_output/train_results.json")
    assert results.exists(), first.stderr[-3000:]
    assert json.loads(results.read_text())["epoch"] == 1  # 4 steps of 2 * 4 rows
    assert AutoModelForSequenceClassification.from_pretrained("trainer_output").config.label2id["pos"] == 1

    before = {path: path.read_bytes() for path in Path("trainer_output").rglob("*") if path.is_file()}
    assert run_on_two_processes(words, own).stderr.count("trainer_output already has a model trained") == 1
    assert {path: path.read_bytes() for path in Path("trainer_output").rglob("*") if path.is_file()} == before
