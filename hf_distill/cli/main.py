"""The console script `hf-distill`: its commands, and what they have in common."""

import argparse
import re
import sys

import hf_distill.cli.benchmark as benchmark
import hf_distill.cli.evaluate as evaluate
import hf_distill.cli.export as export
import hf_distill.cli.inspect as inspect
import hf_distill.cli.make_student as make_student
import hf_distill.cli.push as push
import hf_distill.cli.report as report
import hf_distill.cli.serve as serve
import hf_distill.cli.train as train
from hf_distill.quiet import quiet_libraries
from hf_distill.version import __version__

COMMANDS = [inspect, make_student, train, evaluate, export, push, benchmark, report, serve]
"""In the order of `hf-distill --help`. Each has `add_parser(commands)` and `run(options)`."""


def main(arguments: list[str] | None = None) -> int:
    """Runs `hf-distill`. Errors in what the user gave are one line on stderr and exit code 2."""
    quiet_libraries()
    parser = argparse.ArgumentParser(prog="hf-distill", description="Knowledge distillation for transformers.")
    parser.add_argument("--version", action="version", version=f"hf-distill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] != ["train"]:  # which reads both spellings itself
        words = _with_dashes(words)
    try:
        options = parser.parse_args(words)
        options.run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"hf-distill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _with_dashes(words: list[str]) -> list[str]:
    """Options may have underscores too, as those of `train` have: `--text_column` is `--text-column`."""
    return [re.sub(r"^--[^=]+", lambda option: option.group().replace("_", "-"), word) for word in words]
