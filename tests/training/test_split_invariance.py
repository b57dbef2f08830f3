"""However a step is split into micro-batches and processes, its losses and its gradient are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from tests.conftest import CONFIGS_OF_HEADS, FAMILY_OF_HEAD, HEADS, make_model, make_rows

LOSS_NAMES = ["loss", "loss_kl", "loss_task", "loss_cos"]
TOLERANCE = 1e-6

CASES = [
    *[(head, FAMILY_OF_HEAD.get(head, "bert")) for head in HEADS],
    *[(head, family) for head in ("classification", "mlm") for family in ("roberta", "distilbert")],
    *[("causal", "llama"), ("causal", "opt"), ("seq2seq", "t5"), ("classification", "llama")],
]


class KeepGradient(TrainerCallback):
    """Keeps the gradient of the last optimizer step, all parameters in one vector, and the name of the wrapper."""

    trainer = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.gradient = torch.cat([gradient.flatten() for gradient in gradients]).clone()
        if self.trainer is not None:
            self.wrapper = type(self.trainer.model_wrapped).__name__


def make_pair(head, family):
    """A teacher, and a student of half its layers that is far from it."""
    return make_model(family, head), make_model(family, head, seed=1, num_layers=2)


def make_sparse_rows(head):
    """16 rows of which the first 5 have no label at all, so that there are micro-batches without any."""
    rows = make_rows(head)
    for row in rows[:5]:
        for name in {"labels", "start_positions", "end_positions"} & set(row):
            if isinstance(row[name], list):
                row[name] = [-100] * len(row[name])
            else:
                row[name] = float("nan") if head == "regression" else -100
    return rows


def one_step(make_trainer, head, family, rows=None, checkpointing=False, **arguments):
    """The losses and the gradient of the first optimizer step."""
    teacher, student = make_pair(head, family)
    if checkpointing:
        # its name before transformers 5.10 is deprecated now
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    keeper = KeepGradient()
    rows = rows or make_sparse_rows(head)
    options = {"callbacks": [keeper]}
    trainer = make_trainer(student, teacher, rows, max_steps=1, trainer_options=options, **arguments)
    trainer.train()
    logged = trainer.state.log_history[0]
    return [logged[name] for name in LOSS_NAMES], keeper.gradient


def assert_equal_steps(one, other):
    (one_losses, one_gradient), (other_losses, other_gradient) = one, other
    # The parts are held to the size of the whole: a small KL is the difference of two larger numbers.
    assert one_losses == pytest.approx(other_losses, rel=0, abs=TOLERANCE * other_losses[0])
    assert min(abs(loss) for loss in one_losses) > 1e-3  # else the comparison says little
    assert one_gradient.norm() > 1e-3
    assert (one_gradient - other_gradient).norm() <= TOLERANCE * other_gradient.norm()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("head", "family"), CASES)
def test_micro_batches(make_trainer, head, family, checkpointing):
    whole = one_step(make_trainer, head, family)
    for batch_size, accumulation in [(16, 1), (8, 2), (4, 4), (1, 16)]:
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        assert_equal_steps(one_step(make_trainer, head, family, checkpointing=checkpointing, **split), whole)


@pytest.mark.parametrize("head", ["mlm", "causal", "token_classification", "seq2seq"])
def test_micro_batches_with_the_kl_at_all_attended_positions(make_trainer, head):
    arguments = {"family": FAMILY_OF_HEAD.get(head, "bert"), "kl_positions": "attended"}
    whole = one_step(make_trainer, head, **arguments)
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert_equal_steps(one_step(make_trainer, head, **arguments, **split), whole)


def test_rows_are_ragged_and_labels_few():
    for head in HEADS:
        rows = make_sparse_rows(head)
        lengths = {len(row.get("input_values", row.get("input_ids", []))) for row in rows}
        assert len(lengths) > 3 or head in ("image", "multiple_choice")
    assert CONFIGS_OF_HEADS.keys() <= HEADS.keys()


def test_two_processes(make_trainer, tmp_path):
    """Every case in one pair of processes, since starting them takes longer than their work."""
    result_file = tmp_path / "result.json"
    script = Path(__file__).with_name("one_step_on_two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    run = subprocess.run(
        [*command, str(result_file)], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=400
    )
    assert result_file.exists(), run.stderr[-3000:]
    results = json.loads(result_file.read_text())
    assert len(results) == len(CASES)
    for (head, family), result in zip(CASES, results, strict=True):
        assert result["num_processes"] == 2
        assert result["wrapper"] == "DistributedDataParallel"
        whole = one_step(make_trainer, head, family)
        assert_equal_steps((result["losses"], torch.tensor(result["gradient"])), whole)
        # 15 rows on 2 processes: one row is repeated to fill the last batch, and must not be counted twice.
        teacher, student = make_pair(head, family)
        evaluated = make_trainer(student, teacher, eval_rows=make_sparse_rows(head)[1:]).evaluate()
        for name in LOSS_NAMES:
            assert result["evaluated"][f"eval_{name}"] == pytest.approx(evaluated[f"eval_{name}"], rel=1e-6)
