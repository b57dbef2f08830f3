"""The code blocks of the documentation, and what can be said of a command without running it."""

import argparse
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from hf_distill.cli import main
from hf_distill.cli.train import read_options

ROOT = Path(__file__).parents[2]
GENERATED = "gpu.md"  # which a machine with a GPU writes
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != GENERATED)
READMES = sorted((ROOT / "recipes").rglob("README.md"))

BLOCK = re.compile(r"^```(\w*) *(.*?)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
LANGUAGES = {"python", "shell", "yaml", "json", "text", "console", "bibtex"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. Its title is a file's name, or what it needs that a test does not have."""

    page: str
    language: str
    title: str
    code: str

    @property
    def is_marked(self) -> bool:
        """Whether a reader is told that it needs the Hub, a GPU, time or the like."""
        return self.title.startswith(("Needs ", "Takes "))

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, without variables that are set for it."""
        lines = [shlex.split(line, comments=True) for line in self.code.replace("\\\n", " ").splitlines()]
        return [words[1:] if re.match(r"[A-Z_]+=", words[0]) else words for words in lines if words]


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.stem, language, (TITLE.search(options) or ["", ""])[1], code)
        for language, options, code in BLOCK.findall(text)
    ]


def outside_of_blocks(page: Path) -> str:
    """What is on a page besides its fenced blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


class _ParsedError(BaseException):
    """The options were read: there is nothing left to check."""


def check_command(words: list[str], monkeypatch) -> None:
    """Checks a command line as far as that goes without running it: its program, its options, the files that it names.

    Raises:
        AssertionError: if there is no such program, file, target or extra.
        SystemExit, ValueError: if the program does not take these words.
    """
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(rest) <= set(targets), words
    elif program == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(rest))
        assert rest[0] == "install"
        assert set(extras) <= set(_setup()["options.extras_require"]), words
    elif program == "hf-distill":
        _check_hf_distill(rest, monkeypatch)
    elif program in ("python", "accelerate", "torchrun"):
        _check_python(_after_launcher(program, rest), monkeypatch)
    else:
        assert program in ("curl", "schemathesis", "uv"), f"{program} is not known here: {words}"


def _setup() -> ConfigParser:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def _after_launcher(program: str, words: list[str]) -> list[str]:
    """What Python is given, once the launcher has taken its own options and their values."""
    if program == "python":
        return words
    words = words[1:] if program == "accelerate" else list(words)
    while words[0].startswith("--"):
        option, value = words[:2]
        if option == "--config_file":
            assert (ROOT / value).is_file(), value
        words = words[2:]
    return words


def _check_hf_distill(words: list[str], monkeypatch) -> None:
    if words[0] == "train":  # whose options are read in a second step
        read_options([*words[1:], "--use_cpu"])
    else:
        _parse_only(main, words, monkeypatch)


def _check_python(words: list[str], monkeypatch) -> None:
    if words[0] == "-m":
        module, *rest = words[1:]
    else:
        script, *rest = words
        if script == "train.py":
            return  # the reader's own
        assert (ROOT / script).is_file(), script
        module = script.removesuffix(".py").replace("/", ".")
    if module == "hf_distill.cli":
        _check_hf_distill(rest, monkeypatch)
        return
    if importlib.util.find_spec(module).submodule_search_locations is not None:
        module = f"{module}.__main__"
    assert module.startswith("recipes."), module
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)  # where the recipes' configs are
        patch.setattr(sys, "argv", [module, *rest])
        _parse_only(importlib.import_module(module).main, None, monkeypatch)


def _parse_only(run: Callable, words: list[str] | None, monkeypatch) -> None:
    """Calls a program up to the point where it has read its options."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise _ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        try:
            code = run() if words is None else run(words)
        except _ParsedError:
            return
    raise AssertionError(f"{words} was not read: exit code {code}")
