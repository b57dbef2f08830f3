"""`hf-distill`: behaviour shared by all commands."""

import importlib
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hf_distill import __version__
from hf_distill.cli import main
from hf_distill.cli.common import lines_of
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
        (["train", "--help-all"], "--torch_compile_backend"),
        (["evaluate", "--help"], "--truncation"),
        (["benchmark", "--help"], "--lengths"),
        (["report", "--help"], "--export"),
        (["serve", "--help"], "--max-batch-tokens"),
    ):
        with pytest.raises(SystemExit) as exit_code:
            main(options)
        assert exit_code.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_imports_nothing_that_takes_long(words):
    code = f"""
import sys
from hf_distill.cli import main
from hf_distill.cli.common import lines_of
try:
    main({words})
except SystemExit:
    assert not {{"torch", "transformers", "numpy", "tokenizers", "fastapi", "yaml", "argcomplete"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert ("--alpha_kl" if "train" in words else "make-student") in run.stdout


def run_command(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "hf_distill.cli", *words], capture_output=True, text=True, env=environment, **options
    )


def fail_with(monkeypatch, error, command="inspect"):
    def run(options):
        raise error

    monkeypatch.setattr(f"hf_distill.cli.{command}.run", run)


def test_wrong_words_are_one_line(capsys):
    for words, message in (
        (["nothing"], "hf-distill: Argument COMMAND: invalid choice: 'nothing'"),
        (["export", "MODEL"], "hf-distill: The following arguments are required: --output. See hf-distill export"),
        (["benchmark", "MODEL", "--rounds", "many"], "hf-distill: Argument --rounds: invalid int value: 'many'. See"),
    ):
        with pytest.raises(SystemExit) as exit_code:
            main(words)
        assert exit_code.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(message)
        assert line.endswith("--help.")


def test_a_training_that_diverged_is_no_defect_of_ours(monkeypatch, capsys):
    fail_with(monkeypatch, FloatingPointError("loss_kl not finite in step 3. Lower the learning rate."), "train")
    assert main(["train", "config.yaml"]) == 2
    assert capsys.readouterr().err == "hf-distill: loss_kl not finite in step 3. Lower the learning rate.\n"


def test_an_unexpected_error_is_one_line(monkeypatch, capsys):
    fail_with(monkeypatch, RuntimeError("out of\nmemory"))
    assert main(["inspect", "MODEL"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-distill: RuntimeError: out of memory (")
    assert "--debug" in line


@pytest.mark.parametrize("words", [["--debug", "inspect", "MODEL"], ["inspect", "MODEL", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch, words):
    fail_with(monkeypatch, ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        main(words)


def test_debug_of_train_with_a_value_is_trainers(monkeypatch):
    parsed = []
    monkeypatch.setattr("hf_distill.cli.train.run", parsed.append)
    for words in (["--debug", "underflow_overflow"], ["--debug", "--seed", "1"], ["--seed", "1", "--debug"]):
        assert main(["train", *words]) == 0
    kept = [options.words for options in parsed]
    assert kept == [["--debug", "underflow_overflow"], ["--seed", "1"], ["--seed", "1"]]


def test_ctrl_c(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["inspect", "MODEL"]) == 130
    assert capsys.readouterr().err == "hf-distill: Interrupted.\n"
    monkeypatch.setattr(sys.modules["hf_distill.cli.main"], "make_parser", lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        assert main([]) == 130  # before any command is known
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "hf-distill: Interrupted.\n"
    monkeypatch.undo()
    fail_with(monkeypatch, KeyboardInterrupt(), "train")
    assert main(["train", "config.yaml"]) == 130
    assert "resumes from the last checkpoint" in capsys.readouterr().err


def test_a_pipe_that_is_closed():
    command = f"{sys.executable} -m hf_distill.cli train --help"
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stderr == ""
    assert run.returncode in (0, 141)  # 0 if it was faster


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["serve", "--help"], ["report", "--help"]])
def test_a_narrow_terminal_without_unicode(words):
    run = run_command(*words, env={"COLUMNS": "40", "PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    prose = [line for line in run.stdout.splitlines() if not set("[{<") & set(line) and "  --" not in line]
    assert len(prose) > 20
    assert max(map(len, prose)) <= 40


def test_colour_in_a_terminal_alone(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for is_terminal, no_colour, has_colour in ((True, "", True), (True, "1", False), (False, "", False)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=is_terminal: answer)
        with pytest.raises(SystemExit):
            main(["export", "--help"])
        shown = capsys.readouterr().out
        assert ("\033[36m--min-agreement\033[0m" in shown) == has_colour
        assert ("\033[1musage:\033[0m" in shown) == has_colour


def test_env(capsys):
    assert main(["env"]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["hf_distill"] == __version__
    assert shown["torch"] == version("torch")
    assert {
        "python",
        "transformers",
        "accelerate",
        "datasets",
        "peft",
        "huggingface_hub",
        "onnxruntime",
    } <= shown.keys()
    assert {"torchao", "bitsandbytes", "CPU", "CPU features", "GPU"} <= shown.keys()
    assert str(Path.home()) not in str(shown)
    assert os.uname().nodename not in str(shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "hf-distill" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hf-distill ev", "evaluate"),
        ("hf-distill export --min", "--min-agreement"),
        ("hf-distill train --teacher_d", "--teacher_dtype"),
        ("hf-distill export --format onnx-", "onnx-int8"),
    ],
)
def test_completion(tmp_path, line, expected):
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    run_command(env={**asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer")})
    assert expected in (tmp_path / "answer").read_text().replace("\013", " ").split()


def test_each_command_is_a_file():
    files = {file.stem for file in Path(sys.modules[main.__module__].__file__).parent.glob("*.py")}
    names = {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert files - names == {"__init__", "__main__", "main", "common", "parser", "task_sources", "train_help"}
    assert len(names) == len(COMMANDS) == 13


def test_files_with_texts_or_pairs(tmp_path):
    file = tmp_path / "texts.txt"
    assert lines_of(None) is None
    file.write_text("w5 w6\n\nw7\tw8\n")
    assert lines_of(file) == ["w5 w6", "w7\tw8"]
    file.write_text("w5\tw6 w7\n \nw8\tw9\n")
    assert lines_of(file) == [("w5", "w6 w7"), ("w8", "w9")]
