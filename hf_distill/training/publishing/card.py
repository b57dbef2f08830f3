"""The model card that `DistillationTrainer` writes. It states only what the trainer knows."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import accelerate
import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging

from hf_distill.adapters import transformers_model
from hf_distill.embedding import EmbeddingModel
from hf_distill.hub.cards import RESULTS_BEGIN, RESULTS_END, cut_as_words, make_card
from hf_distill.hub.push import is_on_hub, public_name
from hf_distill.training.losses.schedules import Schedule
from hf_distill.training.publishing.embeddings import in_teachers_space, loading_of
from hf_distill.training.publishing.origins import Origin, in_words, mean_of_teachers, teachers_of
from hf_distill.training.scoring.find_head import auto_class_of, is_exported, pipeline_tag_of
from hf_distill.version import __version__

logger = logging.get_logger(__name__)

FORMATS = {"csv", "json", "parquet", "text", "arrow", "pandas", "generator", "webdataset", "xml", "sql"}
"""Names that `datasets` gives to datasets loaded from files. They say nothing about the data."""


@dataclass(frozen=True)
class CardOptions:
    """The options of `Trainer.create_model_card`. They override what the trainer knows.

    Attributes:
        language: language of the texts, such as "en".
        license: the student's licence.
        tags: additional tags.
        model_name: title of the card.
        finetuned_from: name on the Hub of the model that the student is derived from.
        tasks: the student's task on the Hub, such as "text-classification".
        dataset_tags: name of the dataset on the Hub.
        dataset: name of the dataset to display.
        dataset_args: configuration of the dataset.
    """

    language: str | list[str] | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    model_name: str | None = None
    finetuned_from: str | None = None
    tasks: str | list[str] | None = None
    dataset_tags: str | list[str] | None = None
    dataset: str | list[str] | None = None
    dataset_args: str | list[str] | None = None


@dataclass(frozen=True)
class Data:
    """What is known about a dataset. Unknown values are None."""

    rows: int | None
    name: str | None
    hub_name: str | None
    revision: str | None
    config: str | None
    split: str | None


def training_card(
    trainer: Trainer, name: str, license: Mapping[str, Any], is_adapter: bool, given: CardOptions
) -> ModelCard:
    """Creates the card of the student in its current state.

    Args:
        trainer: the `DistillationTrainer`.
        name: title of the card.
        license: the licence entries of the metadata.
        is_adapter: whether only a PEFT adapter is saved.
        given: the user's options, which override what the trainer knows.
    """
    student = transformers_model(trainer.model)
    task = _first(given.tasks) or trainer.pipeline_tag or pipeline_tag_of(student)
    teachers, cut_from = teachers_of(trainer), _cut_from(student)
    # An adapter belongs to its base model. For any other student the base model is the teacher, or all teachers, with
    # the relation "finetune": the Hub has only adapter, merge, quantized and finetune.
    on_hub = [teacher.name for teacher in teachers if teacher.on_hub and not is_adapter]
    other = _base_of_adapter(student, cut_from) if is_adapter else cut_from
    if not on_hub and other is not None and other.on_hub:
        on_hub = [other.name]
    base_model = given.finetuned_from or (on_hub if len(on_hub) > 1 else next(iter(on_hub), None))
    relation = ("adapter" if is_adapter else "finetune") if base_model else None

    train = data_of(trainer.train_dataset)
    library = "sentence-transformers" if isinstance(student, EmbeddingModel) else "transformers"
    tags = [*_all(given.tags), *_all(getattr(student, "model_tags", None))]
    data = ModelCardData(
        language=given.language,
        library_name="peft" if is_adapter else library,
        tags=["hf_distill", "distillation", *tags],
        base_model=base_model,
        base_model_relation=relation,
        pipeline_tag=task,
        datasets=_all(given.dataset_tags or train.hub_name) or None,
        model_name=name,
        eval_results=_eval_results(trainer, task, given) or None,
        **license,
    )
    if data.eval_results is None:
        data.pop("model_name")
    sections = {
        None: _summary(trainer, student, teachers, cut_from),
        "How it was trained": _training(trainer, train, given) if trainer.state.global_step else None,
        "Results": f"{RESULTS_BEGIN}\n\n{_results(trainer)}\n\n{RESULTS_END}",
        "How to load it": _loading(trainer, student, is_adapter),
        "Versions": _versions(is_adapter),
        "Citation": _citations(trainer),
    }
    parts = [f"## {heading}\n\n{text}" if heading else text for heading, text in sections.items() if text]
    return make_card(data, "\n\n".join([f"# {name}", *parts]) + "\n")


def data_of(dataset: Any) -> Data:
    """What is known about a dataset. Its name and revision on the Hub are read from the path of its cache files."""
    info: Any = getattr(dataset, "info", None)
    rows = len(dataset) if dataset is not None and has_length(dataset) else None
    name = getattr(info, "dataset_name", None)
    if name is None or name in FORMATS:
        return Data(rows, None, None, None, None, None)
    hub_name = revision = None
    for file in getattr(dataset, "cache_files", None) or []:
        cached = re.search(r"([^/\\]+)[/\\][^/\\]+[/\\][^/\\]+[/\\]([0-9a-f]{40})[/\\][^/\\]+$", file["filename"])
        if cached:
            hub_name, revision = cached.group(1).replace("___", "/"), cached.group(2)
    config = None if info.config_name == "default" else info.config_name
    split = None if dataset.split is None else str(dataset.split)
    return Data(rows, name, hub_name, revision, config, split)


def last_results(trainer: Trainer) -> dict[str, float]:
    """The last logged value of each evaluation metric, for the weights that the model has now."""
    history, state = trainer.state.log_history, trainer.state
    ends = [index for index, logs in enumerate(history) if "train_runtime" in logs]
    if ends and trainer.args.load_best_model_at_end and state.best_global_step:
        during = [logs for logs in history[: ends[-1]] if logs.get("step") == state.best_global_step]
        history = [*during, *history[ends[-1] :]]
    unit = ("_runtime", "_per_second", "_model_preparation_time")
    return {
        name: float(value)
        for logs in history
        for name, value in logs.items()
        if name.startswith(("eval_", "test_")) and not name.endswith(unit) and isinstance(value, int | float)
    }


def _cut_from(student: transformers.PreTrainedModel) -> Origin | None:
    provenance = getattr(student.config, "distilled_from", None)
    if not provenance or not provenance["teacher"]:
        return None
    name, revision = provenance["teacher"], provenance["revision"]
    return Origin(name, revision, on_hub=revision is not None or "/" in name)  # a folder has no revision and no slash


def _base_of_adapter(student: transformers.PreTrainedModel, cut_from: Origin | None) -> Origin | None:
    """The base model of an adapter; None if it was cut from a teacher, because it still has the teacher's name."""
    name = student.name_or_path
    return None if cut_from is not None and cut_from.name == public_name(name) else Origin(name, on_hub=is_on_hub(name))


def _summary(
    trainer: Trainer, student: transformers.PreTrainedModel, teachers: Sequence[Origin], cut_from: Origin | None
) -> str:
    kind = type(student.transformer if isinstance(student, EmbeddingModel) else student).__name__
    if trainer.state.global_step == 0:
        said = f"A `{kind}` that **was not trained in this run**."
    elif not teachers:
        said = f"A `{kind}` trained on labels, without a teacher."
    else:
        named = all(teacher.name for teacher in teachers)
        nameless = "a teacher" if len(teachers) == 1 else f"{len(teachers)} teachers"
        names = in_words(teachers) if named else nameless
        said = f"A `{kind}` trained by knowledge distillation from {names}."
        if use := in_teachers_space(trainer, student, names):
            said += f" {use}"
    rows: dict[str, object] = {}
    for index, teacher in enumerate(teachers, start=1):
        number = "" if len(teachers) == 1 else f" {index}"
        if teacher.name:
            settings = ", ".join(f"{name}: {value}" for name, value in (teacher.settings or {}).items())
            rows |= {f"teacher{number}": f"`{teacher.name}`", f"teacher{number} revision": teacher.revision}
            rows[f"teacher{number} settings"] = settings or None
    if len(teachers) > 1:
        rows |= mean_of_teachers(trainer)
    if provenance := getattr(student.config, "distilled_from", None):
        rows |= {"cut from": cut_from, **cut_as_words(provenance)}
    # Under ZeRO-3, parameters are empty and `ds_numel` has their size.
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in student.parameters()]
    rows["parameters"] = f"{sum(sizes):,}"
    return f"{said}\n\n{_table(rows)}"


def _training(trainer: Trainer, train: Data, given: CardOptions) -> str:
    args = trainer.args
    equation = " + ".join(f"{_as_factor(trainer.loss_weights[name])} * L_{name}" for name in trainer.losses)
    symbols = "\n".join(
        f"- `L_{name}`: {loss.description or type(loss).__name__}" for name, loss in trainer.losses.items()
    )
    named = _first(given.dataset) or train.hub_name or train.name
    details = [train.config, train.split, f"revision {train.revision}" if train.revision else None]
    precision = next(
        (name for name in ("bf16", "fp16") if getattr(args, name)), str(transformers_model(trainer.model).dtype)
    )
    processes, accumulated = args.world_size, args.gradient_accumulation_steps
    sizes = {"rows": args.per_device_train_batch_size, "processes": processes, "accumulated": accumulated}
    split = " x ".join(f"{size} {what}" for what, size in sizes.items()) if processes * accumulated > 1 else None
    compares_logits = any(loss.needs.logits and loss.reads_teacher for loss in trainer.losses.values())
    rows = {
        **trainer.earlier_stages,
        **_settings_of_losses(trainer),
        "compared positions": args.kl_positions if compares_logits and trainer.head.per_token else None,
        "data": named and ", ".join([named, *filter(None, details)]),
        "rows": None if train.rows is None else f"{train.rows:,}",
        "steps": f"{trainer.state.global_step:,}",
        "epochs": None if trainer.state.epoch is None else f"{trainer.state.epoch:.4g}",
        "batch size": f"{math.prod(sizes.values())}" + (f" ({split})" if split else ""),
        "optimizer": f"{getattr(args.optim, 'value', args.optim)}, weight decay {args.weight_decay:g}",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value}, {args.warmup_steps:g} warm-up steps",
        "precision": precision.removeprefix("torch."),
        "seed": args.seed,
    }
    return f"    loss = {equation}\n\n{symbols}\n\n{_table(rows)}"


def _as_factor(weight: float | Schedule) -> str:
    return f"({weight})" if isinstance(weight, Schedule) else f"{weight:g}"


def _settings_of_losses(trainer: Trainer) -> dict[str, object]:
    """The losses' settings that are not off. If two losses share the name of a setting, its label names the loss."""
    settings: dict[str, object] = {}
    for name, own in trainer._settings_of_losses().items():
        for setting, value in own.items():
            label = setting.replace("_", " ")
            if value:
                label = f"{label} of L_{name}" if label in settings else label
                settings[label] = f"{value:g}" if isinstance(value, float) else value
    return settings


def _results(trainer: Trainer) -> str:
    results = last_results(trainer)
    if not results:
        return "Not evaluated yet."
    return _table({name: f"{value:.4f}" for name, value in results.items()}, "metric", "value")


def _eval_results(trainer: Trainer, task: str | None, given: CardOptions) -> list[EvalResult]:
    """The results for the metadata. It requires a dataset's name on the Hub, so other datasets are left out."""
    dataset, results = trainer.eval_dataset, last_results(trainer)
    parts = {f"eval_{name}_": own for name, own in dataset.items()} if isinstance(dataset, dict) else {"eval_": dataset}
    found = []
    for prefix, own in parts.items():
        data = data_of(own)
        tag = _first(given.dataset_tags) or data.hub_name or _first(given.dataset)
        if task is None or tag is None:
            continue
        found += [
            EvalResult(
                task_type=task,
                dataset_type=tag,
                dataset_name=_first(given.dataset) or data.name or tag,
                dataset_config=_first(given.dataset_args) or data.config,
                dataset_split=data.split,
                dataset_revision=data.revision,
                metric_type=metric.removeprefix(prefix),
                metric_value=value,
            )
            for metric, value in results.items()
            if metric.startswith(prefix) and "loss" not in metric and math.isfinite(value)
        ]
    return found


def _loading(trainer: Trainer, student: transformers.PreTrainedModel, is_adapter: bool) -> str:
    if isinstance(student, EmbeddingModel) and not is_adapter:
        return loading_of(trainer.hub_model_id or "path/to/this/folder")
    auto_class = auto_class_of(student).__name__
    place = trainer.hub_model_id or "path/to/this/folder"
    is_text = isinstance(trainer.processing_class, PreTrainedTokenizerBase)
    processor = "AutoTokenizer" if is_text else "AutoProcessor"
    names = [auto_class] + [processor] * (trainer.processing_class is not None)
    lines = [
        f"from transformers import {', '.join(sorted(names))}",
        "",
        f'model = {auto_class}.from_pretrained("{place}")',
    ]
    if trainer.processing_class is not None:
        variable = "tokenizer" if is_text else "processor"
        lines.append(f'{variable} = {processor}.from_pretrained("{place}")')
    said = "With plain transformers" + (" and PEFT, which loads the base model too" if is_adapter else "")
    text = f"{said}:\n\n```python\n" + "\n".join(lines) + "\n```"
    if is_adapter or not is_text or not is_exported(student):
        return text
    return (
        f"{text}\n\nAs int8 ONNX, with hf_distill:\n\n"
        f"```shell\nhf-distill export {place} --format onnx-int8 --output onnx\n```\n\n"
        f'```python\nfrom hf_distill import load_predictor\n\nload_predictor("onnx").predict(["..."])\n```'
    )


def _citations(trainer: Trainer) -> str | None:
    """The papers behind the losses, without duplicates."""
    papers = dict.fromkeys(loss.citation for loss in trainer.losses.values() if loss.citation)
    return "```bibtex\n" + "\n\n".join(papers) + "\n```" if papers else None


def _versions(is_adapter: bool) -> str:
    modules = [transformers, torch, datasets, accelerate]
    versions = {"hf_distill": __version__} | {module.__name__: module.__version__ for module in modules}
    if is_adapter:
        import peft

        versions["peft"] = peft.__version__
    return "\n".join(f"- {name} {version}" for name, version in versions.items())


def _all(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or [])


def _first(given: str | list[str] | None) -> str | None:
    return next(iter(_all(given)), None)


def _table(rows: Mapping[str, object], *heading: str) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    first, second = heading or ("", "")
    return "\n".join([f"| {first} | {second} |", "| --- | --- |", *lines])
