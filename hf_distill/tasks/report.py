"""`write_report`: compares a student and its exports with the teacher on one page, as `hf-distill report` does."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.deployment.predictor import load_predictor
from hf_distill.evaluation.benchmark import benchmark_models, locate_model
from hf_distill.evaluation.benchmark_inputs import spread_over
from hf_distill.evaluation.benchmark_tables import Json
from hf_distill.evaluation.plots import plot_quality_against_latency
from hf_distill.evaluation.report import (
    STUDENT,
    TEACHER,
    comparison_table,
    eval_results,
    input_of_length,
    latency_length,
    main_metric,
    metric_title,
    report_page,
    retained,
    shortened,
)
from hf_distill.files import write_json, write_whole
from hf_distill.hub.cards import around_results, put_results
from hf_distill.loading import load_config
from hf_distill.progress import Progress
from hf_distill.tasks.classes import columns_by_name
from hf_distill.tasks.data import MAX_LENGTH, reading_of_models
from hf_distill.tasks.evaluation import read_by
from hf_distill.tasks.registry import check_head, task_of
from hf_distill.tasks.task import Reading, Task


def write_report(
    teacher: str | Path,
    student: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    exports: Sequence[str | Path] = (),
    split: str = "test",
    config_name: str | None = None,
    card: str | Path | None = None,
    num_examples: int = 10,
    lengths: Sequence[int] | None = None,
    threads: int | None = None,
    rounds: int = 10,
    **reading: Any,
) -> Json:
    """Compares a model and its exports with the teacher, and writes a report.

    - Quality: the metrics of the task, and the share of the teacher's quality that is retained.
    - Fidelity: how closely a model follows its teacher, such as how often a classifier predicts the teacher's class,
      and the rows on which student and teacher differ most.
    - Size and speed: `benchmark_models`, on inputs of the data.

    Each model is run through `load_predictor`, with its own length and truncation.

    Args:
        teacher: folder or Hub name.
        student: folder or Hub name of a model for the same task, with the same classes in any order.
        data: labelled rows, as in training. The labels are the teacher's classes, by name or by number.
        output: folder for `report.md`, `report.json` and plots, such as `quality_against_latency.png`.
        task: a name in `TASKS`. Default: the task that the student was trained for by `hf-distill train`, else the
            first that fits its head.
        exports: folders written by `export_model`. Each export is named after its folder.
        split: split of a Hub dataset.
        config_name: configuration of a Hub dataset.
        card: the student's `README.md`. The comparison replaces the results in it and, if the data is on the Hub, the
            student's metrics are added to its metadata. Default: no card is changed.
        num_examples: number of example rows shown.
        lengths: input lengths in tokens for the latency, as in `benchmark_models`.
        threads: threads per forward pass, as in `benchmark_models`.
        rounds: measured rounds, as in `benchmark_models`.
        **reading: how rows are read, as in `evaluate_model`. Default: as the student, else the teacher, was trained by
            `hf-distill train`.

    Returns:
        The content of `report.json`: `task`; `data`; `models`, the measurements by model; `examples`; `published`,
        figures of other students; `settings`, `machine` and `versions`. Local paths are reduced to the name of the
        file or folder.

    Raises:
        ValueError: if a model is for another task or has other classes, if there are no rows, if two exports have the
            same name, or if the card has no section for results.
        ImportError: if matplotlib, a package for the metrics or one that an export needs is missing.

    Example:
        >>> report = write_report("outputs/teacher", "outputs/student", "test.csv", "report", exports=["outputs/int8"])
        >>> report["models"]["student"]["retained"]["accuracy"]
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: give a folder. A new folder is created.")
    if num_examples < 0:
        raise ValueError(f"num_examples={num_examples} must be 0 or more.")
    if card is not None:
        around_results(Path(card))
    models = _by_name(teacher, student, exports)
    configs = {name: load_config(model) for name, model in models.items()}
    row = task_of(configs[STUDENT], str(student), task)
    row.check_packages("matplotlib.figure")
    for name, config in configs.items():
        check_head(row, config, str(models[name]))
    how = reading_of_models(row, [configs[STUDENT], configs[TEACHER]], reading)
    classes = row.classes_of(configs[TEACHER])
    for name, config in configs.items():
        if classes is not None:
            columns_by_name(row.classes_of(config) or [], classes, str(models[name]))
    rows, _ = row.load(str(data), how, classes, split=split, config_name=config_name)
    inputs = row.inputs(rows)
    predictors = {name: load_predictor(*locate_model(model)) for name, model in models.items()}
    if MAX_LENGTH in how:
        how[MAX_LENGTH] = predictors[STUDENT].encoder.max_length
    if row.reads_text:
        predictors[TEACHER].encoder.encode(inputs)  # raises for an invalid input before the long measurement

    measured = benchmark_models(models, lengths=lengths, texts=spread_over(inputs), threads=threads, rounds=rounds)
    with Progress("Predicting", len(predictors) * len(rows), "rows", only_if_long=True) as progress:
        predictions = {name: row.predict(own, rows, how, classes, progress.update) for name, own in predictors.items()}
    quality = {name: row.metrics(own, rows, how) for name, own in predictions.items()}
    fidelity = {
        name: row.metrics(own, None, how, predictions[TEACHER]) for name, own in predictions.items() if name != TEACHER
    }
    output.mkdir(parents=True, exist_ok=True)
    report: Json = {
        "task": row.name,
        "pipeline_tag": row.pipeline_tag,
        "data": {
            "source": _own_name(data),
            "is_on_hub": not Path(data).exists(),
            "config_name": config_name,
            "split": None if Path(data).is_file() else split,
            **{option: value for option, value in how.items() if option not in (MAX_LENGTH, "truncation")},
            "rows": len(rows),
            "labels": classes,
        },
        "models": {
            name: {
                "model": _own_name(model),
                **read_by(predictors[name]),
                "quality": quality[name],
                **({} if name == TEACHER else {"retained": retained(row.quality, quality[TEACHER], quality[name])}),
                **({} if name == TEACHER else {"fidelity": fidelity[name]}),
                "size_and_speed": measured.models[name],
            }
            for name, model in models.items()
        },
        "metrics": {
            kind: {metric: dataclasses.asdict(how_shown) for metric, how_shown in own.items()}
            for kind, own in (("quality", row.quality), ("fidelity", row.fidelity))
        },
        "notes": row.notes,
        "examples": _examples(row, predictions, rows, how, classes, num_examples),
        "plots": row.plot(predictions, rows, how, output),
        "published": list(row.published),
        "settings": measured.settings,
        "machine": measured.machine,
        "versions": measured.versions,
    }
    for name in predictors:
        if name not in (TEACHER, STUDENT):
            with_student = row.metrics(predictions[name], None, how, predictions[STUDENT])
            report["models"][name]["fidelity_to_student"] = with_student
    _plot_quality_against_latency(report, output)
    write_json(output / "report.json", report, ensure_ascii=False)
    write_whole(output / "report.md", report_page(report))
    if card is not None:
        put_results(card, comparison_table(report), eval_results(report) or None)
    return report


def _examples(
    task: Task,
    predictions: dict[str, list],
    rows: Dataset,
    reading: Reading,
    classes: list[str] | None,
    number: int,
) -> list[Json]:
    """The rows on which student and teacher differ most, largest difference first."""
    differences = task.differences(predictions[STUDENT], predictions[TEACHER], reading)
    order = sorted(range(len(rows)), key=lambda row: -differences[row])[:number]
    return [
        {
            "row": row + 1,
            "input": shortened(task.words_of_input(rows, row)),
            "label": shortened(task.words_of_label(rows, row, reading, classes)),
            **{
                name: shortened(task.words_of_prediction(predictions[name][row], rows, row, reading, classes))
                for name in (TEACHER, STUDENT)
            },
            "difference": differences[row],
        }
        for row in order
        if differences[row] > 0
    ]


def _own_name(name_or_path: str | Path) -> str:
    """Hub names as they are, and local paths without their parent folders, because reports are shared."""
    path = Path(name_or_path)
    return path.absolute().name if path.exists() else str(name_or_path)


def _by_name(teacher: str | Path, student: str | Path, exports: Sequence[str | Path]) -> dict[str, str | Path]:
    names = [TEACHER, STUDENT, *(_own_name(export) for export in exports)]
    if len(set(names)) < len(names):
        raise ValueError(
            f"Two models have the same name in the report ({', '.join(names)}): an export is named after its folder, "
            f"so rename one folder."
        )
    return dict(zip(names, [teacher, student, *exports], strict=True))


def _plot_quality_against_latency(report: Json, output: Path) -> None:
    length = latency_length(report)
    metric = main_metric(report)
    points = {
        name: (own["size_and_speed"]["latency"][length]["p50"], own["quality"][metric])
        for name, own in report["models"].items()
    }
    plot_quality_against_latency(
        points,
        output / "quality_against_latency.png",
        metric_title(report, metric),
        f"milliseconds for {input_of_length(length)}",
    )
