"""Reads options from YAML files and the command line. Later values override earlier ones."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

USAGE = "%(prog)s [--config FILE [FILE ...]] [--key value ...]"


def parse_config(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str = "",
    *,
    sections: Sequence[str] = (),
    section: str | None = None,
    usage: str = USAGE,
) -> tuple:
    """Fills dataclasses from `--config FILE [FILE ...] [--key value ...]`.

    Each file is a YAML mapping from field names to values. A later file overrides an earlier one, and the command line
    overrides all files. `null` sets an optional field to None, as in `--test_file null`.

    A program with several stages can keep them in one file. A section, such as `student: {num_train_epochs: 3}`, holds
    fields for one stage only, and overrides the rest of its file.

    Args:
        dataclass_types: dataclasses to fill, such as `DistillationTrainingArguments` and a recipe's own options. Field
            names must be unique across them.
        argv: words of the command line. Default: the command line of this process.
        description: first paragraph of `--help`.
        sections: names of the sections that a file may have.
        section: the section to read. Default: none. Other sections are only checked for unknown fields.
        usage: usage line of `--help` and of errors.

    Returns:
        One object per dataclass, in the order given.

    Raises:
        ValueError: if a file is missing or not a mapping, if it has an unknown field or text in place of a number, or
            if a required option is missing.

    Example:
        >>> recipe, training = parse_config([RecipeArguments, DistillationTrainingArguments])

        Called as `python train.py --config config.yaml smoke.yaml --learning_rate 1e-4`. For a file with sections:

        >>> recipe, training = parse_config(types, sections=["teacher", "student"], section="student")
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="+", default=[], metavar="FILE", help="YAML files; later files override")
    argv = sys.argv[1:] if argv is None else argv
    fields = _Parser(list(dataclass_types), description=description, usage=usage, parents=[files], allow_abbrev=False)
    named_files, words = files.parse_known_args(argv)
    numeric = {action.dest for action in fields._actions if action.type in (int, float)}

    names = {action.dest for action in fields._actions} - {"help", "config"}
    values: dict[str, object] = {}
    for name in named_files.config:
        values |= _read(Path(name), names, numeric, sections, section)
    required = [action.dest for action in fields._actions if action.required]
    optional = _optional_fields(dataclass_types)
    for action in fields._actions:  # options missing on the command line must not override the files
        action.default, action.required = argparse.SUPPRESS, False
        if action.dest in optional:
            _take_null(action)
    given = vars(fields.parse_args(words))
    given.pop("config", None)
    values |= {name: None if value == [None] else value for name, value in given.items()}
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"Missing options: {', '.join(missing)}. Give them in a config file or as --{missing[0]} ...")
    return fields.parse_dict(values)


def value_in_files(name: str, files: Sequence[str | Path]) -> Any:
    """The value of one option in YAML files, of which later ones win; None if no file has it.

    Raises:
        ValueError: if a file is missing or not a mapping.
    """
    values = [content[name] for file in files if name in (content := _mapping(Path(file)))]
    return values[-1] if values else None


class _Parser(HfArgumentParser):
    """Of wrong words it says in one line what is wrong, and which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        program = (self.usage or "%(prog)s").split(" [")[0] % {"prog": self.prog}
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        near = [name for word in unknown for name in get_close_matches(word, self._option_string_actions, n=1)]
        meant = f" Did you mean {' '.join(near)}?" if near else ""
        print(f"{program}: {message}.{meant} See {program} --help.", file=sys.stderr)
        raise SystemExit(2)


def _optional_fields(dataclass_types: Sequence[type]) -> set[str]:
    """Names of the fields that may be None."""
    hints = {name: hint for own in dataclass_types for name, hint in get_type_hints(own).items()}
    return {name for name, hint in hints.items() if type(None) in get_args(hint)}


def _take_null(action: argparse.Action) -> None:
    """Makes an option read `null` as None, as YAML does."""
    read: Any = action.type

    def read_or_null(word: str) -> object:
        return None if word == "null" else read(word) if read else word

    read_or_null.__name__ = getattr(read, "__name__", "value")  # argparse shows this name in errors
    action.type = read_or_null
    if action.choices is not None:
        action.metavar = "{" + ",".join(map(str, action.choices)) + "}"
        action.choices = [*action.choices, None]


def _read(
    file: Path, fields: set[str], numeric: set[str], sections: Sequence[str], section: str | None
) -> dict[str, object]:
    content = _mapping(file)
    by_section = {name: content.pop(name) for name in sections if name in content}
    for part in (content, *by_section.values()):
        _check(file, part, fields, numeric)
    return content | by_section.get(section or "", {})


def _mapping(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"Config file not found: {file.absolute()}. --config needs YAML files, such as recipes/imdb/config.yaml."
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must map option names to values, as in `learning_rate: 5.0e-4`.")
    return values


def _check(file: Path, values: object, fields: set[str], numeric: set[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{file} has the section {values!r}: a section must map option names to values.")
    if unknown := sorted(str(key) for key in values.keys() - fields):
        raise ValueError(f"{file} has unknown options: {', '.join(unknown)}. See --help for all options.")
    if text := {key: value for key, value in values.items() if key in numeric and isinstance(value, str)}:
        key, value = next(iter(text.items()))
        raise ValueError(f"{file}: {key} is the text {value!r}, not a number (YAML reads 1e-4 as text: write 1.0e-4).")
