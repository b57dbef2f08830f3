"""What the quickstart prints at its end: a table, how it was measured, and one sentence."""

import platform
import shutil
import statistics
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from hf_distill import __version__, plot_quality_against_latency
from recipes.quickstart.measure import LATENCY, THROUGHPUT
from recipes.quickstart.train import bf16_is_fast

COMPARED = [
    # what is measured, how it is written, times what
    ("parameters", "{:.1f} M", 1e-6),
    ("megabytes", "{:.1f}", 1),
    ("accuracy", "{:.1f}", 100),
    ("agreement", "{:.1f}", 100),
    (LATENCY, "{:.1f}", 1),
    (THROUGHPUT, "{:.0f}", 1),
]
TITLES = {"accuracy": "accuracy, %", "agreement": "same as teacher, %"}


def machine() -> dict[str, str]:
    """The machine and the versions that figures were measured with."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    )
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "training": "bfloat16 autocast" if bf16_is_fast() else "float32",
        "inference": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_distill": __version__,
    }


def comparison(measured: dict[str, dict]) -> str:
    """Teacher, student and int8 student side by side, or one below the other where the terminal is too narrow."""
    columns = {name: _column(own) for name, own in measured.items()}
    titles = [TITLES.get(name, name) for name, _, _ in COMPARED]
    first = next(iter(columns))
    header = ["", first]
    for name in list(columns)[1:]:
        header += [name, "ratio"]
    rows = []
    for row, title in enumerate(titles):
        cells = [title, columns[first][row][0]]
        for name in list(columns)[1:]:
            cells += columns[name][row]
        rows.append(cells)
    side_by_side = table(header, rows)
    if len(side_by_side.partition("\n")[0]) <= columns_of_terminal():
        return side_by_side
    below = []
    for name, own in columns.items():
        lines = [f"{name:<32} ratio"]
        lines += [f"{title:<21} {text:>10} {ratio:>5}" for title, (text, ratio) in zip(titles, own, strict=True)]
        below.append("\n".join(lines))
    return "\n\n".join(below)


def how_it_was_measured(num_sentences: int) -> str:
    return _filled(
        f"± is the 95% confidence interval on {num_sentences:,} sentences (normal approximation). Ratios are to the "
        f"teacher. Teacher and student run in PyTorch in float32, in batches of 32 for sentences per second; the int8 "
        f"student runs in ONNX Runtime {version('onnxruntime')}, one sentence at a time. All run on the CPU "
        f"({torch.get_num_threads()} threads) and times include tokenisation."
    )


def closing_sentence(measured: dict[str, dict]) -> str:
    """One sentence with what was measured."""
    ratios = measured["int8"]["ratios"]
    return _filled(
        f"The int8 student is {_times(1 / ratios['megabytes'], 'smaller', 'larger')} and "
        f"{_times(1 / ratios[LATENCY], 'faster', 'slower')} than its teacher and keeps {ratios['accuracy']:.1%} of "
        f"its accuracy."
    )


def plot(file: Path, seeds: list[dict[str, dict]]) -> None:
    """Accuracy against latency. With several seeds, the means, with the standard deviation as error bars."""
    points, spread = {}, {}
    for model, name in {"teacher": "teacher", "student": "student", "int8": "student in int8"}.items():
        accuracies = [100 * seed[model]["accuracy"] for seed in seeds]
        points[name] = statistics.median(seed[model][LATENCY] for seed in seeds), statistics.mean(accuracies)
        if len(seeds) > 1:
            spread[name] = statistics.stdev(accuracies)
    plot_quality_against_latency(
        points, file, "Accuracy on test sentences (%)", "Milliseconds for one sentence, on the CPU", spread
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns, which reads well in a terminal too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text, without ± where the terminal cannot show it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return text.replace("±", "+-")
    return text


def columns_of_terminal() -> int:
    return shutil.get_terminal_size(fallback=(80, 24)).columns


def _column(own: dict) -> list[tuple[str, str]]:
    """Each figure of a model, and its ratio to the teacher."""
    cells = []
    for name, text, times in COMPARED:
        written = text.format(times * own[name])
        if name == "accuracy":
            written += f" ± {100 * own['interval']:.1f}"
        cells.append((written, f"{own['ratios'][name]:.2f}"))
    return cells


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f} times {more}" if ratio >= 1 else f"{1 / ratio:.1f} times {less}"


def _filled(text: str) -> str:
    return textwrap.fill(text, min(80, columns_of_terminal()), break_on_hyphens=False)
