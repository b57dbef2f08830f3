"""Evaluates a model on labelled rows: the work of `hf-distill evaluate`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from hf_distill.files import write_json
from hf_distill.lengths import Truncation, length_of_rows, truncation_of
from hf_distill.loading import load_config
from hf_distill.tasks.data import columns_by_name, data_columns, label_names_of
from hf_distill.tasks.models import load_trained
from hf_distill.tasks.task import Task


def evaluate(
    task: Task,
    model: str,
    data: str,
    *,
    teacher: str | None,
    columns: Mapping[str, str | None],
    split: str,
    config_name: str | None,
    max_length: int | None,
    truncation: Truncation | None,
    batch_size: int,
    output: str | Path | None,
) -> dict[str, float]:
    """Measures a model on labelled rows, and compares it with its teacher.

    Args:
        task: a row of `TASKS`.
        model: Hub name or folder.
        data: a source that `task.load` reads, with the model's labels.
        teacher: Hub name or folder, or None.
        columns: column name by option of `task.columns`; None means the column that the model was trained on.
        split: split of a Hub dataset.
        config_name: configuration of a Hub dataset.
        max_length: tokens per text; None means what each model was trained with, else the most it accepts.
        truncation: which part of a long text is kept; None means the part that each model was trained on.
        batch_size: rows per forward pass.
        output: folder for `evaluation.json` and the plots of `task.plot`; None writes nothing.

    Returns:
        The metrics of `task.metrics`, and `texts`, the number of rows.

    Raises:
        ValueError: if data and models do not match, or if a model has no trained head for the task.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    names = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    configs = {role: load_config(name) for role, name in names.items()}
    for role, config in configs.items():
        if config.architectures and not task.has_head(config):
            raise ValueError(f"{names[role]} has no head trained {task.purpose}: fine-tune it first.")
    label_names = label_names_of(configs["model"])
    if teacher is not None:
        columns_by_name(label_names_of(configs["teacher"]), label_names, teacher)  # fails before any data is read
    columns = data_columns(task, [*configs.values()], columns)
    rows, _ = task.load(data, **columns, label_names=label_names, split=split, config_name=config_name)
    models = {role: load_trained(task, name) for role, name in names.items()}
    logits, read = {}, {}
    for role, name in names.items():
        tokenizer, own = AutoTokenizer.from_pretrained(name), models[role].to(device)
        part = truncation or truncation_of(own.config)
        read[role] = {"max_length": length_of_rows(max_length, tokenizer, own), "truncation": part}
        logits[role] = task.predict(own, tokenizer, rows, **read[role], batch_size=batch_size, label_names=label_names)
    labels = list(rows["labels"])
    metrics = {"texts": len(labels), **task.metrics(logits["model"], labels, logits.get("teacher"))}
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        task.plot({names[role]: own for role, own in logits.items()}, labels, Path(output))
        settings = {"model": model, "teacher": teacher, "data": data, **columns, "read": read}
        write_json(Path(output, "evaluation.json"), settings | {"metrics": metrics})
    return metrics
