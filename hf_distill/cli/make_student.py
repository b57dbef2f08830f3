"""`hf-distill make-student`"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hf_distill.cli.common import show_steps

T = TypeVar("T")

SIZES = {
    "intermediate-size": "width of the feed-forward layers",
    "num-attention-heads": "number of attention heads; in models such as BERT, give --hidden-size too",
    "num-key-value-heads": "number of key-value heads",
    "hidden-size": "width of the hidden states",
}
"""The options that are sizes, and what each one sets."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "make-student",
        help="make a student: a copy of a teacher with fewer or narrower layers",
        description="Make a student, a copy of the teacher with fewer or narrower layers, and save it with the "
        "teacher's tokenizer and a model card that names the teacher. `hf-distill inspect` shows which layers and "
        "sizes there are. Without options, half of the layers stay; with a size or a vocabulary, all do.",
    )
    parser.add_argument("teacher", metavar="TEACHER", help="a folder or a name on the Hub")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="folder for the student; it must not exist yet"
    )
    parser.add_argument(
        "--num-layers",
        metavar="N",
        nargs="+",
        help="number of layers to keep (default: half). For named stacks: encoder=6 decoder=2; other stacks keep all",
    )
    parser.add_argument(
        "--layers",
        metavar="WHICH",
        nargs="+",
        help="which layers to keep: alternate (default), spread, first, last, calibrated, influence, or indices such "
        "as 0 2 4. For named stacks: encoder=spread decoder=0,5",
    )
    for size, what in SIZES.items():
        parser.add_argument(f"--{size}", metavar="N", nargs="+", help=f"{what}. By stack as in --num-layers")
    parser.add_argument(
        "--width",
        metavar="HOW",
        default="magnitude",
        help="how to choose the units that stay: magnitude (of their weights, default), or with --calibration-file "
        "activation, pca (principal components of the hidden states), or taylor for language models",
    )
    parser.add_argument("--family", metavar="NAME", help="distilbert: make a DistilBERT from a BERT")
    parser.add_argument(
        "--calibration-file",
        metavar="FILE",
        type=Path,
        help="file with one text per line, for --layers calibrated or influence and --width activation, pca or "
        "taylor; a few hundred lines are enough",
    )
    parser.add_argument(
        "--vocabulary-texts",
        metavar="FILE",
        type=Path,
        help="file with one text per line, such as the student will read: only tokens that occur in it stay",
    )
    parser.add_argument(
        "--keep-tokens",
        metavar="N",
        type=int,
        help="number of tokens to keep: the most frequent in --vocabulary-texts, or the tokenizer's own first ones",
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
        width=options.width,
        calibration_file=options.calibration_file,
        vocabulary_texts=options.vocabulary_texts,
        keep_tokens=options.keep_tokens,
        **{
            size.replace("-", "_"): _by_stack(f"--{size}", vars(options)[size.replace("-", "_")], _number)
            for size in SIZES
        },
    )
    print(
        f"{options.output}: {type(student).__name__} with {_cut(student.config.distilled_from)} of {options.teacher}; "
        f"{student.num_parameters():,} of {teacher.num_parameters():,} parameters"
    )


def _cut(provenance: Mapping[str, Any]) -> str:
    """What the student has of the teacher, such as `layers [0, 2], intermediate_size 768 (of 1,536)`."""
    sizes = provenance.get("sizes", {})
    parts = [f"layers {provenance['layers']}"] if provenance.get("layers") else []
    parts += [f"{name} {own['student']:,} (of {own['teacher']:,})" for name, own in sizes.items()]
    if vocabulary := provenance.get("vocabulary"):
        parts.append(f"{vocabulary['kept']:,} (of {vocabulary['of']:,}) tokens")
    return ", ".join(parts)


def _by_stack(option: str, words: list[str] | None, parse: Callable[[str, list[str]], T]) -> T | dict[str, T] | None:
    """Parses `["6"]` to one value, and `["encoder=6", "decoder=2"]` to a value for each stack."""
    if words is None:
        return None
    if not any("=" in word for word in words):
        return parse(option, words)
    values = {}
    for word in words:
        stack, separator, value = word.partition("=")
        if not separator or stack in values:
            raise ValueError(f"{option}: {' '.join(words)!r} should have one NAME=VALUE for each stack.")
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
