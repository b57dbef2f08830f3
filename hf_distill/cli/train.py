"""`hf-distill train`"""

import argparse
import os
from typing import TYPE_CHECKING

from hf_distill.cli.task_sources import DEFAULT_TASK
from hf_distill.cli.train_help import DESCRIPTION, USAGE, help_parser

if TYPE_CHECKING:
    from hf_distill.tasks.arguments import TaskArguments
    from hf_distill.training import DistillationTrainingArguments


def add_parser(commands: argparse._SubParsersAction) -> None:
    # Importing the dataclasses of its options takes seconds, so the options stay words here, --help too.
    help = "fine-tune or distil a model for a task, with options from YAML files"
    if "_ARGCOMPLETE" in os.environ:  # the shell asks which options there are
        commands.add_parser("train", help=help, parents=[help_parser()], add_help=False)
        return
    parser = commands.add_parser("train", help=help, prefix_chars="\0", add_help=False)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if {"-h", "--help"} & set(options.words):
        help_parser(_task_on_command_line(options.words)).print_help()
        raise SystemExit(0)
    from hf_distill.tasks import train_model

    train_model(*read_options(options.words))


def read_options(words: list[str]) -> "tuple[TaskArguments, DistillationTrainingArguments]":
    """Reads YAML files and options into the arguments of a task and of the training."""
    from hf_distill.config_files import parse_config, value_in_files
    from hf_distill.tasks.registry import task_named
    from hf_distill.training import DistillationTrainingArguments

    num_files = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    files, rest = words[:num_files], words[num_files:]
    task = task_named(_task_on_command_line(rest) or value_in_files("task", files) or DEFAULT_TASK)
    rest = ["--help" if word in ("--help-all", "--help_all") else word for word in rest]
    args, training = parse_config(
        [task.arguments, DistillationTrainingArguments],
        [*(["--config", *files] if files else []), *rest],
        description=DESCRIPTION,
        usage=USAGE,
    )
    return args, training


def _task_on_command_line(words: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    return parser.parse_known_args(words)[0].task
