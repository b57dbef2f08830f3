"""`hf-distill completion`"""

import argparse
import os

from hf_distill.optional import optional

SHELLS = {
    "bash": 'add `eval "$(hf-distill completion bash)"` to ~/.bashrc',
    "zsh": 'add `eval "$(hf-distill completion zsh)"` to ~/.zshrc, after compinit',
    "fish": "write it to ~/.config/fish/completions/hf-distill.fish",
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description="Print a script that completes commands, options and files with the Tab key. For "
        + "; for ".join(f"{shell}, {use}" for shell, use in SHELLS.items())
        + ".",
    )
    parser.add_argument("shell", choices=list(SHELLS), help="the shell")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    print(optional("argcomplete", "completion").shellcode(["hf-distill"], shell=options.shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell, if it is the shell that asks; else does nothing."""
    if "_ARGCOMPLETE" in os.environ:
        optional("argcomplete", "completion").autocomplete(parser)
