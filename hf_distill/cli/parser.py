"""The parser of the commands: help in colour in a terminal, and errors of one line."""

import argparse
import os
import re
import sys
from typing import IO, Any, NoReturn

STYLES = (
    (re.compile(r"^(usage:|[A-Za-z][\w ,]*:$)", re.MULTILINE), "1"),  # headings, in bold
    (re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)"), "36"),  # options, in cyan
    (re.compile(r"^( {2,4}[a-z][a-z-]+)(?= {2,}|$)", re.MULTILINE), "36"),  # commands
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, with a pointer to the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"hf-distill: {message[:1].upper()}{message[1:]}. See {self.prog} --help.\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        file = file or sys.stderr
        super()._print_message(in_colour(message) if shows_colour(file) else message, file)


def shows_colour(file: IO[str]) -> bool:
    """Whether a stream is a terminal with colours. NO_COLOR switches them off."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not file.isatty():
        return False
    return sys.version_info < (3, 14)  # which colours help by itself


def in_colour(text: str) -> str:
    """Help with its headings, options and commands in colour."""
    for pattern, style in STYLES:
        text = pattern.sub(rf"\033[{style}m\1\033[0m", text)
    return text
