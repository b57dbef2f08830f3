"""Machine-dependent behaviour: CPUs without bfloat16 arithmetic, and processes that are not connected."""

from types import SimpleNamespace

import pytest
import torch

from hf_distill.training import checks
from hf_distill.training.checks import check_processes
from tests.conftest import make_model
from tests.processes import run_on_two_processes
from tests.training.test_engines import ROOT


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    monkeypatch.setattr(checks.logger, "warning", seen.append)
    return seen


AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
CPUS = {
    "AVX2": (AVX2, False),
    "AVX512-BF16": ({**AVX2, "avx512_bf16": True}, True),
    "AMX": ({**AVX2, "amx_bf16": True}, True),
    "another": ({"architecture": "aarch64", "neon": True}, True),
}


@pytest.mark.parametrize(("capabilities", "computes"), CPUS.values(), ids=CPUS)
def test_bfloat16_on_a_cpu(make_trainer, monkeypatch, warnings, capabilities, computes):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    teacher, student = make_model("bert", "classification"), make_model("bert", "classification", seed=1)
    make_trainer(student, teacher)
    assert warnings == []
    make_trainer(student, teacher, bf16=True, teacher_dtype="bfloat16")
    assert len(warnings) == (0 if computes else 1)
    if not computes:
        assert "bf16=True and teacher_dtype='bfloat16': this CPU has no bfloat16 instructions" in warnings[0]


SCRIPT = """
from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import make_model
args = DistillationTrainingArguments({folder!r}, report_to="none", alpha_kl=0.0, alpha_cos=0.0)
DistillationTrainer(make_model("bert", "classification"), args)
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="they find each other on accelerators")
def test_processes_on_the_cpu_that_do_not_see_each_other(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + SCRIPT.format(folder=str(tmp_path / "out")))
    run = run_on_two_processes([script])
    assert run.returncode != 0
    assert "ValueError: 2 processes were started, but without an accelerator each would train its own" in run.stderr
    assert "set use_cpu=True to train one student on 2 CPU processes" in run.stderr


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}],
    ids=["none", "nodes that are started one by one", "one process"],
)
def test_a_process_that_trains_alone(monkeypatch, environment):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_processes(SimpleNamespace(world_size=1, output_dir="out"))
