"""The commands that do the same as the quickstart on a file of one's own. They can be pasted as they are printed."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import torch

from recipes.quickstart.data import MAX_LENGTH
from recipes.quickstart.train import bf16_is_fast

IS_WINDOWS = os.name == "nt"


def own_data(
    output: Path, pretrained: Path, teacher_options: Mapping[str, object], student_options: Mapping[str, object]
) -> list[str]:
    """Fine-tune a teacher, distil a student, export it: a command for each."""
    data = [f"--train_file {_quoted(output / 'train.csv')}", f"--test_file {_quoted(output / 'test.csv')}"]
    teacher, student, int8 = (_quoted(output.parent / f"my-{name}") for name in ("teacher", "student", "student-int8"))
    shared = [f"--max_length {MAX_LENGTH}", *_precision()]
    from_pretrained = [f"--model_name_or_path {_quoted(pretrained)}", *_options(teacher_options)]
    from_teacher = [f"--teacher_model_name_or_path {teacher}", *_options(student_options)]
    return [
        _command("train", *from_pretrained, *data, *shared, f"--output_dir {teacher}"),
        _command("train", *from_teacher, *data, *shared, f"--output_dir {student}"),
        _command("export", student, f"--texts {_quoted(output / 'texts.txt')}", f"--output {int8}"),
    ]


def compress_it(output: Path) -> str:
    """Search for the fastest student that keeps enough."""
    data = [f"--train {_quoted(output / 'train.csv')}", f"--test {_quoted(output / 'test.csv')}"]
    small = _quoted(output.parent / "my-small")
    return _command("compress", _quoted(output / "teacher"), *data, "--keep 0.95 --budget 30m", f"--output {small}")


def try_it(output: Path) -> str:
    """Serve the int8 student, with a page to try it in a browser."""
    return _command("serve", _quoted(output / "student-int8"))


def _precision() -> list[str]:
    """bf16 where it is fast. On the CPU, Trainer asks for `--use_cpu` with it."""
    on_cpu = [] if torch.accelerator.is_available() else ["--use_cpu"]
    return ["--bf16", *on_cpu] if bf16_is_fast() else []


def _options(options: Mapping[str, object]) -> list[str]:
    return [f"--{name} {value}" for name, value in options.items()]


def _command(*words: str) -> str:
    """A command in lines of at most 80 columns; in one line on Windows, whose shells continue lines differently."""
    lines = [f"  {_hf_distill()} {words[0]}"]
    for word in words[1:]:
        if IS_WINDOWS or len(f"{lines[-1]} {word} \\") <= 80:
            lines[-1] += f" {word}"
        else:
            lines.append(f"      {word}")
    return " \\\n".join(lines)


def _hf_distill() -> str:
    """How to start hf-distill of this Python: by its name if the shell finds it, else by its path or as a module."""
    script = Path(sysconfig.get_path("scripts"), "hf-distill.exe" if IS_WINDOWS else "hf-distill")
    found = shutil.which("hf-distill")
    if found and Path(found).resolve() == script.resolve():
        return "hf-distill"
    if script.exists():
        return _quoted(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)
    return f"{_quoted(Path(sys.executable))} -m hf_distill.cli"


def _quoted(path: Path) -> str:
    return subprocess.list2cmdline([str(path)]) if IS_WINDOWS else shlex.quote(str(path))
