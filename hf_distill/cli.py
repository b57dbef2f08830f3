"""The console script `hf-distill`."""

import argparse
import sys
import tempfile
from pathlib import Path

from hf_distill.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Runs `hf-distill`. Errors in what the user gave are one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="hf-distill", description="Knowledge distillation for transformers.")
    parser.add_argument("--version", action="version", version=f"hf-distill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_make_student(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"hf-distill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _add_make_student(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "make-student",
        help="cut a smaller model out of a teacher's layers",
        description="Cut a smaller model out of a teacher's layers, and save it with the teacher's tokenizer.",
    )
    parser.add_argument("teacher", metavar="TEACHER", help="a name on the Hub or a folder")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--num-layers", metavar="N", type=int, help="how many layers to keep (default: half)")
    parser.add_argument(
        "--layers",
        metavar="WHICH",
        nargs="+",
        help="alternate (the default), spread, first or last; or the indices to keep, such as 0 2 4",
    )
    parser.set_defaults(run=_make_student)


def _make_student(options: argparse.Namespace) -> None:
    import transformers

    from hf_distill.student import make_student

    if options.output.exists():
        raise ValueError(f"{options.output} exists already: choose another folder, or remove it first.")
    layers = options.layers
    if layers is not None:
        is_strategy = len(layers) == 1 and not layers[0].lstrip("-").isdigit()
        layers = layers[0] if is_strategy else [_index(layer) for layer in layers]

    config = transformers.AutoConfig.from_pretrained(options.teacher)
    architecture = (config.architectures or [None])[0]
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(
            f"{options.teacher} is of the class {architecture}, which transformers does not have: its config should "
            f"name one under `architectures`, such as BertForMaskedLM."
        )
    teacher = model_class.from_pretrained(options.teacher, config=config, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.teacher)
    student = make_student(teacher, num_layers=options.num_layers, layers=layers)

    # Written beside its place and moved there at the end, so that a folder of that name is always whole.
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.output.name}-", dir=options.output.parent) as temporary:
        unfinished = Path(temporary) / options.output.name
        student.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(options.output)
    print(
        f"{options.output}: layers {student.config.distilled_from['layers']} of {options.teacher}, "
        f"{student.num_parameters():,} of {teacher.num_parameters():,} parameters"
    )


def _index(layer: str) -> int:
    try:
        return int(layer)
    except ValueError:
        raise ValueError(f"--layers: {layer!r} is not an index: use one strategy, or indices such as 0 2 4.") from None
