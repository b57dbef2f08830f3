"""Compares a student and its exports with the teacher on one page: the work of `hf-distill report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hf_distill.deployment.heads import head_of_class
from hf_distill.deployment.manifest import is_export, read_manifest
from hf_distill.deployment.predictor import load_predictor
from hf_distill.evaluation.benchmark import NUM_TEXTS, benchmark_models, locate_model
from hf_distill.evaluation.benchmark_tables import Json
from hf_distill.evaluation.plots import plot_quality_against_latency
from hf_distill.evaluation.report import (
    PUBLISHED,
    STUDENT,
    TEACHER,
    compare_with_teacher,
    comparison_table,
    eval_results,
    largest_differences,
    latency_length,
    report_page,
)
from hf_distill.files import write_json, write_whole
from hf_distill.hub.cards import around_results, put_results
from hf_distill.loading import load_config
from hf_distill.progress import Progress
from hf_distill.tasks.data import columns_by_name, data_columns, label_names_of
from hf_distill.tasks.task import Task


def make_report(
    task: Task,
    teacher: str | Path,
    student: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    exports: Sequence[str | Path],
    columns: Mapping[str, str | None],
    split: str,
    config_name: str | None,
    card: str | Path | None,
    num_examples: int,
    lengths: Sequence[int] | None,
    threads: int | None,
    rounds: int,
) -> Json:
    """Compares student, exports and teacher in quality, size and speed.

    Args:
        task: a row of `TASKS`.
        teacher: folder or Hub name.
        student: folder or Hub name; same classes as the teacher.
        data: a source that `task.load` reads, with the teacher's labels.
        output: folder for the report and its plots.
        exports: folders written by `export_model`.
        columns: column name by option of `task.columns`; None means the column that student or teacher was trained on.
        split: split of a Hub dataset.
        config_name: configuration of a Hub dataset.
        card: the student's `README.md`, to which the comparison is added, or None.
        num_examples: number of example texts shown.
        lengths: text lengths in tokens, as in `benchmark_models`.
        threads: threads per forward pass, as in `benchmark_models`.
        rounds: measured rounds, as in `benchmark_models`.

    Returns:
        The content of `report.json`.

    Raises:
        ValueError: if a model is for another task, if models and data do not match, if two exports have the same
            name, or if the card has no section for results.
        ImportError: if matplotlib, `task.metric_packages` or a package that an export needs is missing.
    """
    task.check_packages("matplotlib.figure")
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: give a folder. A new folder is created.")
    if num_examples < 0:
        raise ValueError(f"num_examples={num_examples} must be 0 or more.")
    if card is not None:
        around_results(Path(card))
    models = _by_name(teacher, student, exports)
    labels_of = {name: _labels_of(task, model) for name, model in models.items()}
    label_names = labels_of[TEACHER]
    classes = {name: columns_by_name(own, label_names, str(models[name])) for name, own in labels_of.items()}
    columns = data_columns(task, [load_config(student), load_config(teacher)], columns)
    rows, _ = task.load(data, **columns, label_names=label_names, split=split, config_name=config_name)
    texts, labels = list(rows["text"]), list(rows["labels"])
    predictors = {name: load_predictor(*locate_model(model)) for name, model in models.items()}
    predictors[TEACHER].encoder.encode(texts)  # raises for an invalid text before the long measurement

    measured = benchmark_models(models, lengths=lengths, texts=_spread(texts), threads=threads, rounds=rounds)
    with Progress("Classifying", len(predictors) * len(texts), "texts", only_if_long=True) as progress:
        logits = {name: own.logits(texts, progress.update)[:, classes[name]] for name, own in predictors.items()}
    compared = compare_with_teacher(logits, labels)
    is_on_hub = not Path(data).exists()
    report = {
        "data": {
            "source": _own_name(data),
            "is_on_hub": is_on_hub,
            "config_name": config_name,
            "split": None if Path(data).is_file() else split,
            **columns,
            "texts": len(texts),
            "labels": label_names,
        },
        "models": {
            name: {
                "model": _own_name(model),
                "max_length": predictors[name].encoder.max_length,
                "truncation": predictors[name].encoder.truncation,
                **compared[name],
                "size_and_speed": measured.models[name],
            }
            for name, model in models.items()
        },
        "examples": largest_differences(logits, labels, texts, label_names, num_examples),
        "published": PUBLISHED,
        "settings": measured.settings,
        "machine": measured.machine,
        "versions": measured.versions,
    }
    output.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(own).double() for name, own in logits.items()}
    task.plot(tensors, labels, output)
    _plot_quality_against_latency(report, output)
    write_json(output / "report.json", report, ensure_ascii=False)
    write_whole(output / "report.md", report_page(report))
    if card is not None:
        put_results(card, comparison_table(report), eval_results(report) or None)
    return report


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


def _labels_of(task: Task, model: str | Path) -> list[str]:
    """Class names of a model or an export in the order of their numbers, read without loading weights."""
    if is_export(Path(model)):
        manifest = read_manifest(Path(model))
        head, labels, problem = manifest.head, manifest.labels, manifest.problem_type
    else:
        config = load_config(model)
        head = head_of_class((config.architectures or ["A model whose config names no class"])[0])
        labels = label_names_of(config)
        problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    if head != task.head or problem not in (None, task.problem_type):
        what = problem.replace("_", " ") if problem is not None and head == task.head else head
        raise ValueError(f"{model} is a model for {what}: a report compares {task.models}.")
    return labels


def _spread(texts: Sequence[str]) -> list[str]:
    """A sample spread evenly over the data, which may be sorted by class."""
    return list(texts[:: max(1, len(texts) // NUM_TEXTS)][:NUM_TEXTS])


def _plot_quality_against_latency(report: Json, output: Path) -> None:
    length = latency_length(report)
    points = {
        name: (own["size_and_speed"]["latency"][length]["p50"], own["quality"]["accuracy"])
        for name, own in report["models"].items()
    }
    plot_quality_against_latency(
        points, output / "quality_against_latency.png", "accuracy", f"milliseconds for one text of {length} tokens"
    )
