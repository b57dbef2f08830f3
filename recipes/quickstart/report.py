"""The tables, the plot and the JSON file that the quickstart ends with."""

import platform
import statistics
from pathlib import Path

import torch
import transformers

from hf_distill import __version__, plot_quality_against_latency
from recipes.quickstart.folders import write_json
from recipes.quickstart.train import StudentRun, bf16_is_fast

COMPARED = [
    # what is measured, how it is written
    ("layers", "{:.0f}"),
    ("parameters", "{:,.0f}"),
    ("megabytes on disk", "{:.1f}"),
    ("accuracy", "{:.2%}"),
    ("F1", "{:.2%}"),
    ("agreement with the teacher", "{:.2%}"),
    ("milliseconds for one sentence", "{:.1f}"),
    ("sentences per second", "{:.0f}"),
]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
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


def comparison_table(teacher: dict[str, float], student: dict[str, float], ratios: dict[str, float | None]) -> str:
    """Teacher beside student, with the ratio of student to teacher."""
    rows = [
        [name, text.format(teacher[name]), text.format(student[name]), f"{ratios[name]:.2f}" if ratios[name] else "-"]
        for name, text in COMPARED
    ]
    return _table(["", "teacher", "student", "ratio"], rows)


def students_table(students: dict[str, StudentRun], seeds: list[dict]) -> str:
    """What each student learned from and how good it is: over several seeds, the mean and the standard deviation."""
    rows = [["the teacher itself", "", "all", *_qualities([seed["teacher"] for seed in seeds])]]
    for name, run in students.items():
        learned_from = "teacher" if run.from_teacher else "no teacher"
        rows.append(["student", learned_from, run.labels, *_qualities([seed["students"][name] for seed in seeds])])
    return _table(["", "learns from", "labels", "accuracy", "F1", "agreement"], rows)


def write_report(file: Path, seeds: list[dict]) -> None:
    """Everything that was measured, per seed, and on what."""
    write_json(file, {"machine": machine(), "seeds": seeds})


def write_plot(file: Path, students: dict[str, StudentRun], seed: dict) -> None:
    """Quality against latency: the teacher, the student, and the students that it is compared with."""
    latency = {name: seed[name]["milliseconds for one sentence"] for name in ("teacher", "student")}
    points = {"teacher": (latency["teacher"], seed["teacher"]["accuracy"])}
    for name, run in students.items():
        learns_from = "teacher" if run.from_teacher else "no teacher"
        label = f"student, {learns_from}, labels: {run.labels}"
        points[label] = (latency["student"], seed["students"][name]["accuracy"])
    plot_quality_against_latency(points, file, "accuracy on the test sentences", "milliseconds for one sentence")


def _qualities(measured: list[dict[str, float]]) -> list[str]:
    cells = []
    for name in ("accuracy", "F1", "agreement with the teacher"):
        values = [one[name] for one in measured]
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{100 * statistics.mean(values):.1f}{spread}")
    return cells


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, aligned so that it reads well in a terminal too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
