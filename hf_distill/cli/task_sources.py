"""The tasks and the options of their data, read out of the sources, since importing them takes seconds."""

import ast
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]

DEFAULT_TASK = "text-classification"

METAVARS = {
    "model_name_or_path": "MODEL",
    "teacher_model_name_or_path": "MODEL",
    "layers": "WHICH",
    "generation_config": "MODEL",
    "embedding_dims": "WIDTH ...",
    "layer_map": "PAIRS",
    "stages": "YAML",
    **{f"{part}_file": "PATH" for part in ("train", "validation", "test", "unlabelled")},
    **{f"{part}_split": "SPLIT" for part in ("train", "validation", "test", "unlabelled")},
}
METAVARS_OF_TYPES = {"int": "N", "float": "X", "Scheduled": "X|SCHEDULE", "str": "NAME", "bool": "[true|false]"}


@dataclass(frozen=True)
class Option:
    """A field of a dataclass as an option."""

    name: str
    metavar: str
    default: Any
    help: str


def own_options(file: Path, class_name: str, hidden: Collection[str] = ()) -> list[Option]:
    """The fields of a dataclass of ours, without those that it inherits, and without hidden ones."""
    return _options_of(_classes_in(file)[class_name], file, hidden)


@cache
def options_of_task(name: str) -> list[Option]:
    """The options that a task adds to those that all tasks have, by the name of the task.

    Raises:
        ValueError: if there is no such task.
    """
    tasks = task_arguments()
    if name not in tasks:
        raise ValueError(f"task={name!r} must be one of {', '.join(tasks)}.")
    classes = {own: (node, file) for file in _files() for own, node in _classes_in(file).items()}
    options: dict[str, Option] = {}
    wanted = tasks[name]
    while wanted != "TaskArguments":
        node, file = classes[wanted]
        options = {option.name: option for option in _options_of(node, file)} | options
        (wanted,) = (ast.unparse(base) for base in node.bases)
    return [option for option in options.values() if option.name != "task"]


@cache
def options_of_all_tasks() -> dict[str, list[str]]:
    """The options that tasks add, each with the names of the tasks that have it."""
    found: dict[str, list[str]] = {}
    for task in task_arguments():
        for option in options_of_task(task):
            found.setdefault(option.name, []).append(task)
    return found


@cache
def task_arguments() -> dict[str, str]:
    """The name of the dataclass of options of each task, by the name of the task; the default task comes first."""
    found = {}
    for file in _files():
        for node in _classes_in(file).values():
            values = {ast.unparse(own.targets[0]): own.value for own in node.body if isinstance(own, ast.Assign)}
            if "name" in values and "arguments" in values:
                found[ast.literal_eval(values["name"])] = ast.unparse(values["arguments"])
    return {DEFAULT_TASK: found.pop(DEFAULT_TASK), **found}


def _files() -> list[Path]:
    return sorted((PACKAGE / "tasks").glob("*.py"))


@cache
def _classes_in(file: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _body(file) if isinstance(node, ast.ClassDef)}


@cache
def _body(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def _options_of(node: ast.ClassDef, file: Path, hidden: Collection[str] = ()) -> list[Option]:
    choices: dict[str, str] = {}
    shared = (PACKAGE / "lengths.py", PACKAGE / "data" / "chats.py", PACKAGE / "data" / "class_labels.py")
    for source in (*shared, file):
        choices |= _choices(source)
    options = []
    for own in node.body:
        if not isinstance(own, ast.AnnAssign) or not isinstance(own.target, ast.Name) or own.target.id in hidden:
            continue
        assert isinstance(own.value, ast.Call)  # field(default=..., metadata={"help": ...})
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in own.value.keywords}
        kind = ast.unparse(own.annotation).removesuffix(" | None")
        metavar = METAVARS.get(own.target.id) or choices.get(kind) or METAVARS_OF_TYPES[kind]
        options.append(Option(own.target.id, metavar, given["default"], given["metadata"]["help"]))
    return options


@cache
def _choices(file: Path) -> dict[str, str]:
    """By the name of each `X = Literal["a", "b"]`, `{a,b}`."""
    found = {}
    for node in _body(file):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
            assert isinstance(node.value, ast.Subscript)
            values = ",".join(ast.literal_eval(node.value.slice))
            found[ast.unparse(node.targets[0])] = f"{{{values}}}"
    return found
