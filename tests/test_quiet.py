"""What a user reads who did nothing wrong."""

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hf_distill import quiet_libraries
from hf_distill.quiet import WARNINGS
from tests.conftest import make_model, make_text_tokenizer, make_texts

OURS = re.compile(
    r"step \d+ of \d+, \d+:\d\d left: .*"
    r"|[A-Z][a-z ]+: \d[\d,]* of \d[\d,]* \w+( in \d+:\d\d|, .* left)"
    r"|(Loading|Writing|Comparing|Kept layers) .*"
)
"""Lines of progress."""

COMMANDS = """
train config.yaml --output_dir teacher
train config.yaml --model_name_or_path null --teacher_model_name_or_path teacher --output_dir student
make-student teacher --layers calibrated --calibration-file texts.txt --output cut
evaluate student --teacher teacher --data train.csv --output evaluation
export student --output student-int8 --min-agreement 0
report --teacher student --student student-int8 --data train.csv --rounds 1 --lengths 8 --output report
"""
"""Each works with what those before it wrote."""

RUN_ALL = """
import sys
from hf_distill.cli import main
for line in sys.argv[1].strip().splitlines():
    if line.startswith("report"):
        from hf_distill.evaluation import benchmark
        benchmark._start = lambda *given: {"peak_memory": 1, "seconds": 1.0, "imports_torch": True}
    assert main(line.split()) == 0, line
    print("done", line.split()[0])
"""
"""In one process, which imports PyTorch once. What others that it starts say, is not shown."""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    make_model("bert", "mlm").save_pretrained(folder / "pretrained")
    make_text_tokenizer().save_pretrained(folder / "pretrained")
    texts = make_texts(16)
    (folder / "texts.txt").write_text("\n".join(texts))
    rows = [f"{text},{'pos' if index % 2 else 'neg'}" for index, text in enumerate(texts)]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "config.yaml").write_text(
        "train_file: train.csv\ntest_file: train.csv\nmodel_name_or_path: pretrained\nmax_steps: 2\n"
        "per_device_train_batch_size: 4\nlogging_steps: 1\nsave_steps: 1\n"
    )
    return folder


def run_quietly(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    for name in ("PYTHONWARNINGS", "TQDM_DELAY", "TQDM_MININTERVAL"):
        environment.pop(name, None)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.long
def test_commands_show_only_our_lines(folder):
    run = run_quietly(["-c", RUN_ALL, COMMANDS], folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("done ") == len(COMMANDS.split("\n")) - 2
    assert [line for line in run.stderr.splitlines() if not OURS.fullmatch(line)] == []


def test_our_warnings_and_all_errors_are_shown(tmp_path):
    code = """
import logging, warnings
from hf_distill import quiet_libraries
quiet_libraries()
logging.getLogger("hf_distill.training.checks").warning("ours, logged")
logging.getLogger("torchao").error("an error of theirs: Failed to load a.so")
logging.getLogger("torchao").warning("Failed to load a.so")
logging.getLogger("torchao").warning("another warning")
for module in ("hf_distill.data.texts", "__main__", "hf_distillery", "yaml"):
    warnings.warn_explicit(f"future of {module}", FutureWarning, "file.py", 1, module=module)
warnings.warn_explicit("of theirs to a user", UserWarning, "file.py", 1, module="yaml")
"""
    run = run_quietly(["-c", code], tmp_path)
    shown = [line.partition("Warning: ")[2] or line for line in run.stderr.splitlines()]
    assert shown == [
        *("ours, logged", "an error of theirs: Failed to load a.so", "another warning"),
        *("future of hf_distill.data.texts", "future of __main__", "of theirs to a user"),
    ]


def test_calling_it_again_changes_nothing(monkeypatch):
    monkeypatch.setattr(os, "environ", {"TQDM_DELAY": "3"})
    with warnings.catch_warnings():
        quiet_libraries()
        filters = {name: list(logging.getLogger(name).filters) for name in WARNINGS}
        before = list(warnings.filters)
        quiet_libraries()
        assert {name: logging.getLogger(name).filters for name in WARNINGS} == filters
        assert warnings.filters == before
    assert os.environ["TQDM_DELAY"] == "3"
