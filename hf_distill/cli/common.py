"""Options that several commands have, and the files that they read."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.cli.task_sources import options_of_all_tasks, options_of_task, task_arguments

if TYPE_CHECKING:
    from hf_distill.deployment.text_encoder import TextInput

MODEL = "a folder or a name on the Hub"

MAX_LENGTH = "tokens per text (default: the length that the model was trained with, or the most that it takes)"


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="labelled rows, as in training: a file (CSV, JSON, Parquet), a folder, or a dataset on the Hub",
    )
    parser.add_argument("--split", default="test", help="split of a dataset on the Hub (default: test)")
    parser.add_argument("--config-name", metavar="NAME", help="configuration of a dataset on the Hub")
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="the task (default: the one that the model was trained for): see hf-distill tasks",
    )
    group = parser.add_argument_group(
        "how rows are read",
        "Default: as in the training by hf-distill train. `hf-distill tasks NAME` shows what each option means.",
    )
    for name, tasks in options_of_all_tasks().items():
        of = "all tasks" if len(tasks) == len(task_arguments()) else ", ".join(tasks)
        option = next(option for option in options_of_task(tasks[0]) if option.name == name)
        metavar = option.metavar if len(option.metavar) < 20 else "CHOICE"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=metavar,
            type=_type_of(option.metavar),
            default=argparse.SUPPRESS,
            help=of,
        )


def _type_of(metavar: str) -> Callable[[str], Any]:
    if metavar == "[true|false]":
        return _true_or_false
    return {"N": int, "X": float}.get(metavar, str)


def _true_or_false(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} must be true or false")
    return word.lower() == "true"


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths",
        metavar="TOKENS",
        nargs="+",
        type=int,
        help="text lengths for the latency (default: 16 64 128 256, where all models take them)",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads for each model (default: all cores)")
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=10, help="rounds to measure, after one to warm up (default: 10)"
    )


def show_steps() -> None:
    """Shows on stderr what hf_distill does, step by step."""
    logging.basicConfig(format="%(message)s")  # on stderr; other libraries keep their levels
    logging.getLogger("hf_distill").setLevel(logging.INFO)


def keyword_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a command, by name."""
    return {name: value for name, value in vars(options).items() if name not in ("command", "run")}


def lines_of(file: Path | None) -> "list[TextInput] | None":
    """The non-empty lines of a file, pairs of texts if each line has one tab; None if there is no file."""
    if file is None:
        return None
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(line.count("\t") != 1 for line in lines):
        return [*lines]
    return [(first, second) for first, second in (line.split("\t") for line in lines)]
