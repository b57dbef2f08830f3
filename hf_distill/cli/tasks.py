"""`hf-distill tasks`"""

import argparse
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_distill.tasks.task import Task

WIDTH = 80


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "tasks",
        help="list the tasks, with the data that they read and an example of each",
        description="List the tasks of `hf-distill train --task NAME`: what their models do, the columns that they "
        "read, and a complete config of each.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="show one task, with all options of its data")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.tasks.registry import TASKS, task_named

    if options.name is None:
        print("\n\n".join(describe(task) for task in TASKS.values()))
        print("\nhf-distill tasks NAME shows one task with its options.")
        return
    task = task_named(options.name)
    own = task.reading_fields()
    width = max(len(field.name) for field in own)
    print(describe(task))
    print("\nOptions of its data:\n")
    for field in own:
        default = "" if field.default is None else f" Default: {field.default}."
        text = f"{field.metadata['help']}{default}"
        print(
            textwrap.fill(text, WIDTH, initial_indent=f"  {field.name:<{width}}  ", subsequent_indent=" " * (width + 4))
        )


def describe(task: "Task") -> str:
    """A task as text: its name, what its models do, the data that it reads, and a config."""
    lines = [
        task.name,
        textwrap.indent(textwrap.fill(f"{task.summary[0].upper()}{task.summary[1:]}.", WIDTH - 2), "  "),
        textwrap.fill(f"Reads: {task.data}.", WIDTH, initial_indent="  ", subsequent_indent="         "),
        "  Example, in a file config.yaml:",
        textwrap.indent(f"task: {task.name}\n{task.example}".rstrip(), "    "),
        "  hf-distill train config.yaml",
    ]
    return "\n".join(lines)
