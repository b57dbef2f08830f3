"""A step on two processes, with each engine, equals the step on one process. World size and wrapper are asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import HEADS, make_model
from tests.processes import NO_GPU, run_on_two_processes
from tests.training.losses.test_layer_losses import ALONE, NAMES
from tests.training.teacher.test_ensemble import one_step_of_several
from tests.training.test_split_invariance import (
    CASES,
    LOSS_NAMES,
    assert_equal_steps,
    make_pair,
    make_sparse_rows,
    one_step,
)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"
SCRIPT = Path(__file__).with_name("one_step_on_processes.py")


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")


def run_script(tmp_path, engine, cases, launcher=None):
    """The script's results. Its exit status is ignored, because gloo's threads sometimes abort at the end."""
    result_file = tmp_path / "result.json"
    words = [str(SCRIPT), engine, str(result_file), *(":".join(case) for case in cases)]
    if launcher is None:
        run = run_on_two_processes(words, cwd=ROOT, timeout=400)
    else:
        run = subprocess.run(
            [sys.executable, "-m", *launcher, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=400,
            env={**os.environ, **NO_GPU, "DS_ACCELERATOR": "cpu"},
        )
    assert result_file.exists(), run.stderr[-3000:]
    results = json.loads(result_file.read_text())
    assert len(results) == len(cases)
    assert os.listdir(tmp_path / "out") == ["checkpoint-1"]
    if engine != "zero3":  # ZeRO-3 gathers weights only when asked to
        head = cases[-1][0]
        _, loading = HEADS[head].from_pretrained(tmp_path / "out" / "checkpoint-1", output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
    assert all(result["num_processes"] == 2 for result in results)
    return results


def assert_equal_to_one_process(make_trainer, result, head, family, *layers):
    if layers:
        whole = one_step(make_trainer, head, family, losses=NAMES, optim="sgd", **ALONE)
    else:
        whole = one_step(make_trainer, head, family, optim="sgd")
    assert_equal_steps((result["losses"], torch.tensor(result["gradient"])), whole)
    if moved := result["moved"]:  # the parameters of losses come last
        torch.testing.assert_close(torch.tensor(moved), whole[1][-len(moved) :], rtol=1e-5, atol=1e-6)
    assert bool(moved) == ("/" in family)


def assert_several_teachers_equal_one_process(make_trainer, results):
    result, is_sharded = results[0]["several teachers"], results[0]["teacher_is_sharded"]
    assert result["num_processes"] == 2
    assert result["teacher_is_sharded"] == is_sharded
    seen = result["losses"], torch.tensor(result["gradient"])
    assert_equal_steps(seen, one_step_of_several(make_trainer, "mlm", "votes", 16))


def test_ddp(make_trainer, tmp_path):
    """Every case in one pair of processes, since starting them takes longer than their work."""
    results = run_script(tmp_path, "ddp", DDP_CASES)
    assert_several_teachers_equal_one_process(make_trainer, results)
    first, second = results[0]["beginnings"]  # of a loss with parameters, which begin as on the first process
    assert first == second
    for case, result in zip(DDP_CASES, results, strict=True):
        assert result["wrapper"] == "DistributedDataParallel"
        assert_equal_to_one_process(make_trainer, result, *case)
        head, family, *layers = case
        # 15 rows on 2 processes: one row is repeated to fill the last batch, and must not be counted twice.
        teacher, student = make_pair(head, family)
        options = {"project_hidden_states": "/" in family, **(ALONE if layers else {})}
        evaluated = make_trainer(student, teacher, eval_rows=make_sparse_rows(head)[1:], **options).evaluate()
        for name in ["loss", *(f"loss_{name}" for name in NAMES)] if layers else LOSS_NAMES:
            assert result["evaluated"][f"eval_{name}"] == pytest.approx(evaluated[f"eval_{name}"], rel=1e-6, abs=1e-7)


@pytest.mark.long
def test_accelerate_launch(make_trainer, tmp_path):
    launcher = ("accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml"))
    (result,) = run_script(tmp_path, "ddp", [("mlm", "bert")], launcher)
    assert result["wrapper"] == "DistributedDataParallel"
    assert_equal_to_one_process(make_trainer, result, "mlm", "bert")


@pytest.mark.parametrize(
    ("name", "distributed_type"),
    [
        ("cpu", "MULTI_GPU"),
        ("ddp", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("zero2", "DEEPSPEED"),
        ("zero3", "DEEPSPEED"),
    ],
)
def test_configs_are_accelerates(name, distributed_type):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == distributed_type
    assert config.num_processes == 2
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


def test_every_config_is_tried():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"cpu", "ddp", "fsdp2", "zero2", "zero3"}


LAYERS = [("mlm", "bert/narrow", "layers"), ("causal", "llama", "layers"), ("seq2seq", "t5", "layers")]
DDP_CASES = [*CASES, *LAYERS]
SHARDED_CASES = [
    *[(head, family) for head in ("classification", "mlm") for family in ("bert", "roberta", "distilbert")],
    ("causal", "gpt2"),
    ("causal", "llama"),
    ("seq2seq", "t5"),
    ("mlm", "bert/narrow"),
    *LAYERS,
]


def test_fsdp2(make_trainer, tmp_path):
    results = run_script(tmp_path, "fsdp2", SHARDED_CASES)
    assert_several_teachers_equal_one_process(make_trainer, results)
    for case, result in zip(SHARDED_CASES, results, strict=True):
        head, family, *_ = case
        assert result["wrapper"] == "FSDP" + type(make_model(family.partition("/")[0], head)).__name__
        assert result["teacher_is_sharded"]
        assert_equal_to_one_process(make_trainer, result, *case)


def test_fsdp2_resumes_losses_with_parameters(tmp_path):
    """Also where parameters have no optimizer state, because no loss reads the logits of the head."""
    result_file = tmp_path / "result.json"
    run = run_on_two_processes(
        [str(SCRIPT.with_name("resume_on_processes.py")), str(result_file)], cwd=ROOT, timeout=200
    )
    assert result_file.exists(), run.stderr[-3000:]
    result = json.loads(result_file.read_text())
    assert result["equal"]
    assert result["wrapper"] == "FSDPBertForMaskedLM"
    assert {"loss_parameters.safetensors", "loss_optimizer.safetensors"} <= set(result["saved"])


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(make_trainer, tmp_path, stage):
    results = run_script(tmp_path, f"zero{stage}", SHARDED_CASES, TORCHRUN)
    assert_several_teachers_equal_one_process(make_trainer, results)
    for case, result in zip(SHARDED_CASES, results, strict=True):
        assert result["wrapper"] == "DeepSpeedEngine"
        assert result["teacher_is_sharded"] == (stage == 3)
        assert_equal_to_one_process(make_trainer, result, *case)
