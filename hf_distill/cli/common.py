"""Options that several commands have, and the files that they read."""

import argparse
import logging
from pathlib import Path
from typing import Any

MODEL = "a folder or a name on the Hub"

MAX_LENGTH = "tokens per text (default: the length that the model was trained with, or the most that it takes)"


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="labelled texts: CSV, JSON or Parquet, a folder with one folder of .txt files per class, or a dataset on "
        "the Hub",
    )
    parser.add_argument("--split", default="test", help="split of a dataset on the Hub (default: test)")
    parser.add_argument("--config-name", metavar="NAME", help="configuration of a dataset on the Hub")
    for name in ("text", "label"):
        help = f"column with the {name}s (default: the one that the model was trained on, or {name})"
        parser.add_argument(f"--{name}-column", metavar="NAME", help=help)


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths",
        metavar="TOKENS",
        nargs="+",
        type=int,
        help="text lengths for the latency (default: 16 64 128 256, where all models take them)",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads for each model (default: all cores)")
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=10, help="rounds to measure, after one to warm up (default: 10)"
    )


def show_steps() -> None:
    """Shows on stderr what hf_distill does, step by step."""
    logging.basicConfig(format="%(message)s")  # on stderr; other libraries keep their levels
    logging.getLogger("hf_distill").setLevel(logging.INFO)


def keyword_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a command, by name."""
    return {name: value for name, value in vars(options).items() if name not in ("command", "run")}


def lines_of(file: Path | None) -> list[str] | None:
    """The non-empty lines of a file, or None if there is no file."""
    if file is None:
        return None
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
