"""The console script `hf-distill`: its commands, and how their errors are shown."""

import os
import re
import sys

import hf_distill.cli.benchmark as benchmark
import hf_distill.cli.completion as completion
import hf_distill.cli.compress as compress
import hf_distill.cli.env as env
import hf_distill.cli.evaluate as evaluate
import hf_distill.cli.export as export
import hf_distill.cli.inspect as inspect
import hf_distill.cli.make_student as make_student
import hf_distill.cli.push as push
import hf_distill.cli.report as report
import hf_distill.cli.serve as serve
import hf_distill.cli.tasks as tasks
import hf_distill.cli.train as train
from hf_distill.cli.parser import Parser
from hf_distill.quiet import quiet_libraries
from hf_distill.version import __version__

COMMANDS = [
    *(tasks, inspect, make_student, train, evaluate, export, benchmark, report, compress, serve, push, env),
    completion,
]
"""In the order of `hf-distill --help`. Each has `add_parser(commands)` and `run(options)`."""

GOES_ON = {
    "train": " The same command resumes from the last checkpoint, if there is one.",
    "compress": " The same command goes on where it stopped.",
}
"""What is said after Ctrl-C, by command."""

EXPECTED = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""Errors in the input of a command, and a training that diverged. Their messages say what would work."""


def main(arguments: list[str] | None = None) -> int:
    """Runs `hf-distill`.

    Returns:
        The exit code: 0; 2 for an error in `EXPECTED`, which is one line on stderr; 1 for any other error, also
        one line; 130 after Ctrl-C. With `--debug` an error is raised, with its traceback.
    """
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # do not stop at a character that the terminal cannot show
            stream.reconfigure(errors="replace")
    words, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(words, debug)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as in `hf-distill inspect MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell gives for it


def _run(words: list[str], debug: bool) -> int:
    try:
        parser = make_parser()
        completion.complete(parser)
        options = parser.parse_args(words if words[:1] == ["train"] else _with_dashes(words))
        options.run(options)
    except KeyboardInterrupt:
        print(f"hf-distill: Interrupted.{GOES_ON.get(words[0], '') if words else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        if isinstance(error, EXPECTED):
            print(f"hf-distill: {message}", file=sys.stderr)
            return 2
        print(
            f"hf-distill: {type(error).__name__}: {message} (this was not expected: run it again with --debug, and "
            f"report the traceback with what `hf-distill env` prints)",
            file=sys.stderr,
        )
        return 1
    return 0


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="hf-distill",
        description="Knowledge distillation for transformers.",
        epilog="`hf-distill COMMAND --help` shows the options of a command. With --debug, an error shows its "
        "traceback.",
    )
    parser.add_argument("--version", action="version", version=f"hf-distill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The words without `--debug`, and whether it was among them. `train --debug VALUE` is an option of Trainer."""
    of_trainer = {
        index
        for index, word in enumerate(words[:-1])
        if words[0] == "train" and word == "--debug" and not words[index + 1].startswith("-")
    }
    kept = [word for index, word in enumerate(words) if word != "--debug" or index in of_trainer]
    return kept, len(kept) < len(words)


def _with_dashes(words: list[str]) -> list[str]:
    """Accepts options with underscores, the spelling of `train`: `--text_column` becomes `--text-column`."""
    return [re.sub(r"^--[^=]+", lambda option: option.group().replace("_", "-"), word) for word in words]
