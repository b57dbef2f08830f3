"""However a step is split into micro-batches and processes, its losses and its gradient are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_distill import make_student
from tests.conftest import make_model, make_rows

LOSS_NAMES = ["loss", "loss_kl", "loss_task", "loss_cos"]


class KeepGradient(TrainerCallback):
    """Keeps the gradient of the last optimizer step, all parameters in one vector, and the name of the wrapper."""

    trainer = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.gradient = torch.cat([gradient.flatten() for gradient in gradients]).clone()
        if self.trainer is not None:
            self.wrapper = type(self.trainer.model_wrapped).__name__


def make_pair(family, head):
    return make_model(family, head), make_student(make_model(family, head, seed=1))


def one_step(make_trainer, head, family="bert", rows=None, **arguments):
    """The losses and the gradient of the first optimizer step of a student far from its teacher."""
    teacher, student = make_pair(family, head)
    keeper = KeepGradient()
    trainer = make_trainer(
        student,
        teacher,
        rows=rows or make_rows(head),
        max_steps=1,
        trainer_options={"callbacks": [keeper]},
        **arguments,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    return [logged[name] for name in LOSS_NAMES], keeper.gradient


def assert_equal_steps(one, other, tolerance=1e-6):
    (one_losses, one_gradient), (other_losses, other_gradient) = one, other
    # The parts are held to the size of the whole: a small KL is the difference of two larger numbers.
    assert one_losses == pytest.approx(other_losses, rel=0, abs=tolerance * other_losses[0])
    assert min(abs(loss) for loss in one_losses) > 1e-3  # else the comparison says little
    assert one_gradient.norm() > 1e-3
    assert (one_gradient - other_gradient).norm() <= tolerance * other_gradient.norm()


@pytest.mark.parametrize(
    ("head", "kl_positions"), [("classification", "labels"), ("mlm", "labels"), ("mlm", "attended")]
)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 2), (4, 4), (1, 16)])
def test_micro_batches(make_trainer, family, head, kl_positions, batch_size, accumulation):
    arguments = {"kl_positions": kl_positions, "family": family}
    whole = one_step(make_trainer, head, per_device_train_batch_size=16, **arguments)
    split = one_step(
        make_trainer,
        head,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **arguments,
    )
    assert_equal_steps(split, whole)


def test_unlabelled_rows_among_labelled_ones(make_trainer):
    rows = make_rows("classification")
    for row in rows[:6]:  # the first micro-batch has no label at all
        row["labels"] = -100
    whole = one_step(make_trainer, "classification", rows=rows)
    split = one_step(
        make_trainer, "classification", rows=rows, per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    assert_equal_steps(split, whole)


@pytest.mark.parametrize("head", ["classification", "mlm"])
def test_two_processes(make_trainer, head, tmp_path):
    whole = one_step(make_trainer, head)
    script = Path(__file__).with_name("one_step_on_two_processes.py")
    result_file = tmp_path / "result.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    run = subprocess.run(
        [*command, head, str(result_file)], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=240
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(result_file.read_text())
    assert result["num_processes"] == 2
    assert result["wrapper"] == "DistributedDataParallel"
    assert_equal_steps((result["losses"], torch.tensor(result["gradient"])), whole)
    # 15 rows on 2 processes: one row is repeated to fill the last batch, and must not be counted twice.
    teacher, student = make_pair("bert", head)
    evaluated = make_trainer(student, teacher, eval_rows=make_rows(head, num_rows=15)).evaluate()
    for name in LOSS_NAMES:
        assert result["evaluated"][f"eval_{name}"] == pytest.approx(evaluated[f"eval_{name}"], rel=1e-6)
