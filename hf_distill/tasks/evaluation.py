"""`evaluate_model`: measures a model on labelled rows, as `hf-distill evaluate` does."""

from pathlib import Path
from typing import Any

import torch

from hf_distill.deployment.predictor import Predictor, load_predictor
from hf_distill.evaluation.benchmark import locate_model
from hf_distill.files import write_json
from hf_distill.loading import load_config
from hf_distill.progress import Progress
from hf_distill.tasks.classes import columns_by_name
from hf_distill.tasks.data import MAX_LENGTH, reading_of_models
from hf_distill.tasks.registry import check_head, task_of


def evaluate_model(
    model: str | Path,
    data: str | Path,
    *,
    task: str | None = None,
    teacher: str | Path | None = None,
    split: str = "test",
    config_name: str | None = None,
    output: str | Path | None = None,
    **reading: Any,
) -> dict[str, float]:
    """Measures the quality of a model on labelled rows, and compares it with its teacher.

    Models run through `load_predictor`, on the GPU if there is one.

    Args:
        model: Hub name or folder of a model, or the folder of an export.
        data: a file, a folder or a Hub name with labelled rows, as in training. The labels are the model's classes, by
            name or by number.
        task: a name in `TASKS`. Default: the task that the model was trained for by `hf-distill train`, else the first
            that fits its head.
        teacher: Hub name or folder. It may be of another model family and use another tokenizer.
        split: split of a Hub dataset.
        config_name: configuration of a Hub dataset.
        output: folder for `evaluation.json` and plots. Default: nothing is written.
        **reading: how rows are read: options of the task's arguments, such as `text_column`, `label_column`,
            `max_length` or `truncation`. Default: as in the training by `hf-distill train`, else the task's defaults.

    Returns:
        The metrics of the task, and `rows`, the number of rows.

    Raises:
        ValueError: if data or models are invalid or do not match, or if an option is unknown.
        ImportError: if a package for the metrics is missing or, with `output`, matplotlib.

    Example:
        >>> evaluate_model("outputs/student", "test.csv", teacher="outputs/teacher")["accuracy"]
    """
    names = {"model": str(model)} | ({} if teacher is None else {"teacher": str(teacher)})
    configs = {role: load_config(name) for role, name in names.items()}
    row = task_of(configs["model"], names["model"], task)
    for role, config in configs.items():
        check_head(row, config, names[role])
    how = reading_of_models(row, [*configs.values()], reading)
    classes = row.classes_of(configs["model"])
    if teacher is not None and classes is not None:
        columns_by_name(row.classes_of(configs["teacher"]) or [], classes, names["teacher"])  # before data is read
    row.check_packages(*([] if output is None else ["matplotlib.figure"]))
    rows, _ = row.load(str(data), how, classes, split=split, config_name=config_name)
    predictors = {role: load_reader(name, reading) for role, name in names.items()}
    if MAX_LENGTH in how:
        how[MAX_LENGTH] = predictors["model"].encoder.max_length
    with Progress("Predicting", len(names) * len(rows), "rows", only_if_long=True) as progress:
        predictions = {
            role: row.predict(predictor, rows, how, classes, progress.update) for role, predictor in predictors.items()
        }
    metrics = {"rows": len(rows), **row.metrics(predictions["model"], rows, how, predictions.get("teacher"))}
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        row.plot({names[role]: own for role, own in predictions.items()}, rows, how, Path(output))
        read = {role: read_by(own) for role, own in predictors.items()}
        how = {option: value for option, value in how.items() if option not in (MAX_LENGTH, "truncation")}
        settings = {"task": row.name, "model": names["model"], "teacher": names.get("teacher"), "data": str(data)}
        write_json(Path(output, "evaluation.json"), {**settings, **how, "read": read, "metrics": metrics})
    return metrics


def read_by(predictor: Predictor) -> dict[str, Any]:
    """How much of a text a model reads."""
    if predictor.reads in ("image", "audio"):
        return {}
    return {"max_length": predictor.encoder.max_length, "truncation": predictor.encoder.truncation}


def load_reader(name: str, reading: dict[str, Any], threads: int | None = None) -> Predictor:
    """Loads a model of any format, which reads as much of each row as in its training, or as `reading` says.

    With a number of threads it runs on the CPU, else on the GPU if there is one.
    """
    on_gpu = threads is None and torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if on_gpu else None
    predictor = load_predictor(*locate_model(name), threads=threads, device=device)
    predictor.read_texts(reading.get(MAX_LENGTH), reading.get("truncation"))
    return predictor
