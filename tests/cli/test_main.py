"""`hf-distill`: what its commands have in common."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill import __version__
from hf_distill.cli import main
from hf_distill.cli.main import COMMANDS


@pytest.mark.parametrize(
    "words",
    [
        ["make-student", "TEACHER", "--num_layers", "1", "--calibration_file=a_b.txt", "--output", "a_b"],
        ["evaluate", "MODEL", "--data", "a_b.csv", "--text_column", "a_b", "--label_column=a_b", "--max_length", "8"],
        ["export", "MODEL", "--output", "a_b", "--max_length", "8", "--min_agreement", "0.9"],
        ["report", "--teacher", "a", "--student", "b", "--data", "c", "--output", "d", "--config_name", "a_b"],
        ["serve", "MODEL", "--token_file", "a_b", "--max_batch_tokens", "512"],
    ],
)
def test_options_with_underscores(monkeypatch, words):
    """Those of `train` are spelt so; of a value, nothing is changed."""
    parsed = []
    command = importlib.import_module(f"hf_distill.cli.{words[0].replace('-', '_')}")
    monkeypatch.setattr(command, "run", parsed.append)
    with_dashes = [
        word.replace("_", "-", word.split("=")[0].count("_")) if word[:2] == "--" else word for word in words
    ]
    assert with_dashes != words
    assert main(words) == main(with_dashes) == 0
    assert parsed[0] == parsed[1]
    assert "a_b" in str(parsed[0])


def test_version_and_help(capsys):
    for options, expected in (
        (["--version"], __version__),
        (["--help"], "make-student"),
        (["inspect", "--help"], "no weights"),
        (["make-student", "--help"], "--num-layers"),
        (["train", "--help"], "--gradient_accumulation_steps"),
        (["evaluate", "--help"], "--truncation"),
        (["benchmark", "--help"], "--lengths"),
        (["report", "--help"], "--export"),
        (["serve", "--help"], "--max-batch-tokens"),
    ):
        with pytest.raises(SystemExit) as exit_code:
            main(options)
        assert exit_code.value.code == 0
        assert expected in capsys.readouterr().out


def test_help_imports_nothing_that_takes_long():
    code = """
import sys
from hf_distill.cli import main
try:
    main(["--help"])
except SystemExit:
    assert not {"torch", "transformers", "numpy", "tokenizers", "fastapi"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "make-student" in run.stdout


def test_each_command_is_a_file():
    files = {file.stem for file in Path(sys.modules[main.__module__].__file__).parent.glob("*.py")}
    names = {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert files - names == {"__init__", "__main__", "main", "common"}
    assert len(names) == len(COMMANDS) == 9
