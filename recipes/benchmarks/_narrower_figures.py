"""Tables and plot of the benchmark `narrower`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from recipes.benchmarks._common import table
from recipes.benchmarks.where_distilling_pays import percents

if TYPE_CHECKING:
    from recipes.benchmarks.narrower import Benchmark

TEACHER = "teacher"
FORMATS = {"fp32": "onnx", "int8": "onnx-int8"}
MARKERS = "osD^v<>pPX*hd"


def print_tables(benchmark: "Benchmark", names: Sequence[str], variants: Sequence[str]) -> None:
    """Prints accuracy, size and speed of all students, and the accuracy of the variants of one."""
    columns = ["", "parameters, M", "of the teacher's", "accuracy", "of the teacher's", "agreement", "MB", "ms"]
    columns += ["of the teacher's", "int8: accuracy", "of the teacher's", "MB", "ms"]
    lines = []
    for name in [TEACHER, *names]:
        fp32, int8 = (benchmark.shares(name, kind) for kind in FORMATS)
        lines.append(
            [
                name,
                f"{benchmark.parameters(name) / 1e6:.1f}",
                f"{fp32['parameters']:.1%}",
                percents(benchmark.values(name, "fp32", "accuracy")),
                f"{fp32['accuracy']:.1%}",
                percents(benchmark.values(name, "fp32", "agreement")),
                f"{benchmark.megabytes(name, 'fp32'):.1f}",
                f"{benchmark.speed[name]['fp32']:.2f}",
                f"{fp32['milliseconds']:.1%}",
                percents(benchmark.values(name, "int8", "accuracy")),
                f"{int8['accuracy']:.1%}",
                f"{benchmark.megabytes(name, 'int8'):.1f}",
                f"{benchmark.speed[name]['int8']:.2f}",
            ]
        )
    print(f"\nPercent over the seeds, mean ± standard deviation; {benchmark.steps} steps\n")
    print(table(columns, lines))
    if variants:
        print("\nOne student, made and trained in other ways\n")
        print(
            table(
                ["", "accuracy", "agreement"],
                [
                    [
                        name,
                        *(percents(benchmark.values(name, "fp32", measure)) for measure in ("accuracy", "agreement")),
                    ]
                    for name in variants
                ],
            )
        )


def print_goals(benchmark: "Benchmark", names: Sequence[str]) -> None:
    """Prints which students are small, fast and nearly as accurate as the teacher."""
    reached: dict[str, list[str]] = {
        "97% of the teacher's accuracy, with at most 35% of its parameters and a quarter of its time in fp32": [],
        "95% of the teacher's accuracy, in less than 8 MB in int8": [],
    }
    small_and_fast, tiny = reached.values()
    for name in names:
        fp32, int8 = (benchmark.shares(name, kind) for kind in FORMATS)
        if fp32["accuracy"] >= 0.97 and fp32["parameters"] <= 0.35 and fp32["milliseconds"] <= 0.25:
            small_and_fast.append(name)
        if int8["accuracy"] >= 0.95 and benchmark.megabytes(name, "int8") < 8:
            tiny.append(name)
    print()
    for goal, students in reached.items():
        print(f"{goal}: {'; '.join(students) or 'none'}")


def write_plot(file: Path, benchmark: "Benchmark", names: Sequence[str]) -> None:
    """Draws accuracy against milliseconds, megabytes and parameters: hollow in fp32, filled in int8."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 6), sharey=True, layout="constrained")
    for index, name in enumerate([TEACHER, *names]):
        color, marker = f"C{index % 10}", MARKERS[index % len(MARKERS)]
        for kind in FORMATS:
            accuracies = [100 * value for value in benchmark.values(name, kind, "accuracy")]
            deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
            sizes = [benchmark.speed[name][kind], benchmark.megabytes(name, kind), benchmark.parameters(name) / 1e6]
            for axes, size in zip(panels, sizes, strict=True):
                axes.errorbar(
                    size,
                    statistics.mean(accuracies),
                    deviation,
                    color=color,
                    marker=marker,
                    markerfacecolor="none" if kind == "fp32" else color,
                    capsize=2,
                    linestyle="none",
                    label=name if kind == "fp32" else None,
                )
    titles = ["milliseconds for one sentence, one thread", "megabytes", "parameters, millions"]
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel=title, xscale="log")
        axes.grid(alpha=0.3, which="both")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted(lambda value, position: f"{value:g}" if f"{value:.0e}"[0] in "1235" else "")
    panels[0].set_ylabel("accuracy on test sentences (%)")
    figure.suptitle("Hollow: fp32. Filled: int8. Better models are further up and to the left.")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    unfinished = file.with_suffix(".unfinished.png")
    figure.savefig(unfinished, dpi=120)
    plt.close(figure)
    unfinished.replace(file)
