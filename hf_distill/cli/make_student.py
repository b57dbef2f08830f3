"""`hf-distill make-student`"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hf_distill.cli.common import show_steps

T = TypeVar("T")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "make-student",
        help="cut a smaller model out of a teacher's layers",
        description="Cut a smaller model out of a teacher's layers, and save it with the teacher's tokenizer and a "
        "card that says where it is from. `hf-distill inspect` shows what there is to cut.",
    )
    parser.add_argument("teacher", metavar="TEACHER", help="a name on the Hub or a folder")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument(
        "--num-layers",
        metavar="N",
        nargs="+",
        help="how many layers to keep (default: half); by stack as encoder=6 decoder=2, and the others stay whole",
    )
    parser.add_argument(
        "--layers",
        metavar="WHICH",
        nargs="+",
        help="alternate (the default), spread, first, last or calibrated; or the indices to keep, such as 0 2 4; by "
        "stack as encoder=spread decoder=0,5",
    )
    parser.add_argument("--family", metavar="NAME", help="distilbert makes a DistilBERT of a BERT")
    parser.add_argument(
        "--calibration-file",
        metavar="FILE",
        type=Path,
        help="a text file with one example per line, for --layers calibrated; some hundred lines are enough",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    show_steps()
    from hf_distill.student.folders import make_student_folder

    student, teacher = make_student_folder(
        options.teacher,
        options.output,
        num_layers=_by_stack("--num-layers", options.num_layers, _number),
        layers=_by_stack("--layers", options.layers, _layers),
        family=options.family,
        calibration_file=options.calibration_file,
    )
    print(
        f"{options.output}: {type(student).__name__} with layers {student.config.distilled_from['layers']} of "
        f"{options.teacher}, {student.num_parameters():,} of {teacher.num_parameters():,} parameters"
    )


def _by_stack(option: str, words: list[str] | None, parse: Callable[[str, list[str]], T]) -> T | dict[str, T] | None:
    """`["6"]` as `parse` has it, `["encoder=6", "decoder=2"]` as a mapping of it."""
    if words is None:
        return None
    if not any("=" in word for word in words):
        return parse(option, words)
    values = {}
    for word in words:
        stack, separator, value = word.partition("=")
        if not separator or stack in values:
            raise ValueError(f"{option}: {' '.join(words)!r} should have one NAME=VALUE for each stack that it names.")
        values[stack] = parse(option, value.split(","))
    return values


def _number(option: str, words: list[str]) -> int:
    if len(words) != 1:
        raise ValueError(f"{option}: {' '.join(words)!r} should be one number, or NAME=NUMBER for stacks.")
    return _integer(option, words[0])


def _layers(option: str, words: list[str]) -> str | list[int]:
    if len(words) == 1 and not words[0].lstrip("-").isdigit():
        return words[0]
    return [_integer(option, word) for word in words]


def _integer(option: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(
            f"{option}: {word!r} is not a whole number: numbers such as 0 2 4 belong here, or NAME=VALUE for stacks."
        ) from None
