"""Helpers shared by the benchmarks: command lines, quiet trainings, ratios, tables and files."""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from hf_distill import __version__
from recipes.quickstart.data import MAX_LENGTH
from recipes.quickstart.fetch import FetchError
from recipes.quickstart.folders import write_json as write_json
from recipes.quickstart.report import machine

PACKAGES = ["hf_distill", "torch", "transformers", "accelerate"]

BATCH_SIZE = 64

QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
"""Options for `TrainingArguments` that save and report nothing."""


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Makes a parser for `python -m recipes.benchmarks.NAME`, with the option `--output`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m recipes.benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path(f"outputs/benchmarks/{name}.json"), help="output file")
    return parser


def add_fetched(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fetched",
        type=Path,
        default=Path("outputs/quickstart-fetched"),
        help="folder with the quickstart's downloads",
    )


def explains_fetch_errors(main: Callable[[], int]) -> Callable[[], int]:
    """A `main` that prints why something could not be downloaded, and returns 1, instead of a traceback."""

    @wraps(main)
    def explaining() -> int:
        try:
            return main()
        except FetchError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1

    return explaining


def all_exist(*needed: Path) -> bool:
    """Checks that the needed output of the quickstart exists, and prints what is missing."""
    for path in needed:
        if not path.exists():
            print(f"{path} not found: run `make quickstart` first.", file=sys.stderr)
            return False
    return True


def silence() -> None:
    """Hides warnings of transformers and progress bars, which would break up the tables."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def train_quietly(trainer: Trainer) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def synchronise() -> None:
    """Waits until the accelerator has finished, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios computed within each round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Formats the mean and, for several values, the standard deviation."""
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else mean


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def print_machine(*names: str) -> dict[str, str]:
    """Prints some entries of `machine()` in one line, and returns them."""
    on = {name: machine()[name] for name in names}
    print(", ".join(f"{name}: {value}" for name, value in on.items()))
    return on


def print_versions(packages: Sequence[str]) -> dict[str, str]:
    """Prints the version of each package in one line, and returns them."""
    # hf_distill may be on PYTHONPATH without being installed.
    versions = {name: __version__ if name == "hf_distill" else version(name) for name in packages}
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    return versions


@torch.inference_mode()
def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """`[texts, labels]`: the model's logits, in fp32 on the CPU. Texts of similar length share a batch."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    logits = torch.empty(len(texts), model.config.num_labels)
    for start in range(0, len(texts), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        batch = [texts[index] for index in indices]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        logits[indices] = model(**inputs.to(model.device)).logits.float().cpu()
    return logits
