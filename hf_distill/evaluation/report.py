"""Compares a student and its exports with the teacher, and formats the comparison as a page."""

import html
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from huggingface_hub import EvalResult
from numpy.typing import ArrayLike

from hf_distill.evaluation.benchmark_tables import Json, describe_measuring, latency_table, size_table
from hf_distill.evaluation.classification import agreement, as_logits, classification_metrics, kl_of_rows
from hf_distill.evaluation.tables import WIDTH, models_table, paragraph

TEACHER, STUDENT = "teacher", "student"

QUALITY = {"accuracy": "accuracy", "f1": "F1", "matthews_correlation": "Matthews"}
"""Metrics for which the retained share of the teacher's value is reported, with their names in tables."""

LATENCY_LENGTH = 128
"""Length, in tokens, whose latency is reported where there is room for one; else the longest measured length."""

SHOWN = 160
"""Characters shown of each example text."""

PUBLISHED = [
    {
        "student": "DistilBERT",
        "teacher": "BERT-base",
        "parameters": {"teacher": 110_000_000, "student": 66_000_000},
        "times_as_fast": 1.6,
        "retained": 0.97,
        "of": "GLUE",
        "source": "Sanh et al., 2019: https://arxiv.org/abs/1910.01108",
    },
    {
        "student": "DistilRoBERTa",
        "teacher": "RoBERTa-base",
        "parameters": {"teacher": 125_000_000, "student": 82_000_000},
        "times_as_fast": 2.0,
        "retained": None,
        "of": None,
        "source": "its model card: https://huggingface.co/distilbert/distilroberta-base",
    },
]
"""Published figures of other students, measured by their authors on their own data and machines."""


def compare_with_teacher(logits: Mapping[str, ArrayLike], labels: ArrayLike) -> dict[str, Json]:
    """Computes quality and fidelity of each model.

    Args:
        logits: `[texts, classes]` by model: "teacher", "student", and exports under any name. All models have the same
            order of classes.
        labels: `[texts]`, class numbers.

    Returns:
        By model, `quality`: accuracy, F1, Matthews correlation and calibration error, as in `classification_metrics`.
        For every model except the teacher also `retained`: accuracy, F1 and Matthews correlation as shares of the
        teacher's, or None if the teacher's is not above 0; and `fidelity`: `agreement` with the teacher,
        `kl_to_teacher`, and for exports `agreement_with_student`.
    """
    tensors = {name: as_logits(own, name) for name, own in logits.items()}
    compared: dict[str, Json] = {}
    for name, own in tensors.items():
        compared[name] = {"quality": classification_metrics(own, labels)}
        if name == TEACHER:
            continue
        best = compared[TEACHER]["quality"]
        quality = compared[name]["quality"]
        compared[name]["retained"] = {
            metric: quality[metric] / best[metric] if best[metric] > 0 else None for metric in QUALITY
        }
        compared[name]["fidelity"] = classification_metrics(own, teacher_logits=tensors[TEACHER])
        if name != STUDENT:
            compared[name]["fidelity"]["agreement_with_student"] = agreement(own, tensors[STUDENT])
    return compared


def largest_differences(
    logits: Mapping[str, ArrayLike],
    labels: Sequence[int],
    texts: Sequence[str],
    label_names: Sequence[str],
    number: int,
) -> list[Json]:
    """Finds the texts on which student and teacher differ most, by KL(teacher || student) in nats, largest first.

    Args:
        logits: as in `compare_with_teacher`.
        labels: `[texts]`, class numbers.
        texts: `[texts]`; only their first characters are kept.
        label_names: class names in the order of their numbers.
        number: number of texts to return.

    Returns:
        For each text: `row`, counted from 1, `text`, `label`, `teacher` and `student` with `label` and `score`, and
        `kl`.
    """
    tensors = {name: as_logits(logits[name], name) for name in (TEACHER, STUDENT)}
    divergence = kl_of_rows(tensors[STUDENT], tensors[TEACHER]).numpy()
    probabilities = {name: own.softmax(-1).numpy() for name, own in tensors.items()}
    examples = []
    for row in np.argsort(-divergence, kind="stable")[:number].tolist():
        said = {
            name: {"label": label_names[own[row].argmax()], "score": float(own[row].max())}
            for name, own in probabilities.items()
        }
        text = {"row": row + 1, "text": _short(texts[row]), "label": label_names[labels[row]]}
        examples.append({**text, **said, "kl": float(divergence[row])})
    return examples


def report_page(report: Json) -> str:
    """Formats the report as one Markdown page. It shows the plots that lie in the same folder."""
    models, data = report["models"], report["data"]
    parts = [
        f"# {models[STUDENT]['model']} compared with {models[TEACHER]['model']}",
        paragraph(
            f"{data['texts']:,} texts of {data['source']}, {len(data['labels'])} classes: {_listed(data['labels'])}. "
            + "; ".join(f"{name}: {own['model']} ({own['size_and_speed']['format']})" for name, own in models.items())
            + "."
        ),
        "## Quality",
        quality_table(models),
        paragraph(
            "F1 is for the second class if there are two classes, else the mean over all classes. Retained is the "
            "share of the teacher's figure. Calibration error is the mean distance between confidence and accuracy, in "
            "15 bins."
        ),
        "![Calibration](calibration.png)",
        "## Fidelity",
        fidelity_table(models),
        "KL(teacher || student) is in nats at temperature 1, averaged over the texts.",
        "### Texts on which student and teacher differ most",
        examples_list(report["examples"]),
        "## Size and speed",
        size_table(_speeds(models)),
        latency_table(_speeds(models)),
        describe_measuring(report["settings"], report["machine"], report["versions"]),
        "![Quality against latency](quality_against_latency.png)",
        "## Compared with published students",
        published_table(report),
        "The published figures come from other tasks and other machines:\n\n"
        + "\n".join(f"- {own['student']}: {own['source']}" for own in PUBLISHED),
    ]
    return "\n\n".join(parts) + "\n"


def quality_table(models: Mapping[str, Json]) -> str:
    figures = {}
    for metric, name in QUALITY.items():
        figures[name] = [f"{own['quality'][metric]:.2%}" for own in models.values()]
        figures[f"{name}, retained"] = [_retained(own, metric) for own in models.values()]
    figures["calibration error"] = [f"{own['quality']['expected_calibration_error']:.2%}" for own in models.values()]
    return models_table(list(models), figures)


def fidelity_table(models: Mapping[str, Json]) -> str:
    others = {name: own["fidelity"] for name, own in models.items() if name != TEACHER}
    with_student = [f"{own['agreement_with_student']:.2%}" if name != STUDENT else "-" for name, own in others.items()]
    return models_table(
        list(others),
        {
            "agreement with the teacher": [f"{own['agreement']:.2%}" for own in others.values()],
            "KL to the teacher": [f"{own['kl_to_teacher']:.4f}" for own in others.values()],
            "agreement with the student": with_student,
        },
    )


def examples_list(examples: Sequence[Json]) -> str:
    """A numbered list: the label, what both models predict, the KL divergence, and below it the text."""
    return "\n\n".join(_example(number, own) for number, own in enumerate(examples, start=1))


def _example(number: int, example: Json) -> str:
    said = ", ".join(f"{name} {example[name]['label']} {example[name]['score']:.0%}" for name in (TEACHER, STUDENT))
    text = re.sub(r"([\\`*_\[\]#|~])", r"\\\1", html.escape(example["text"], quote=False))
    return (
        f"{number}. KL {example['kl']:.3f}, label {example['label']}: {said}\n\n"
        f"{textwrap.indent(textwrap.fill(text, WIDTH - 5), '   > ')}"
    )


def published_table(report: Json) -> str:
    models = report["models"]
    length = latency_length(report)
    speed = models[STUDENT]["size_and_speed"]["latency"][length]["times_as_fast"]["median"]
    sizes = {name: models[name]["size_and_speed"]["parameters"] for name in (TEACHER, STUDENT)}
    own = {"parameters": sizes, "times_as_fast": speed, "retained": models[STUDENT]["retained"]["accuracy"]}
    own |= {"student": "this student", "teacher": "its teacher", "of": "accuracy"}
    rows = [own, *PUBLISHED]
    sizes_of = {name: [row["parameters"][name] for row in rows] for name in (TEACHER, STUDENT)}
    return models_table(
        [row["student"] for row in rows],
        {
            "teacher": [row["teacher"] for row in rows],
            "teacher's parameters": [f"{size / 1e6:,.1f} M" for size in sizes_of[TEACHER]],
            "parameters": [f"{size / 1e6:,.1f} M" for size in sizes_of[STUDENT]],
            "share": [f"{small / large:.2f}" for large, small in zip(*sizes_of.values(), strict=True)],
            "times as fast": [f"{row['times_as_fast']:.2f}" for row in rows],
            "retained": [_share(row["retained"]) for row in rows],
            "of": [row["of"] or "-" for row in rows],
        },
    )


def comparison_table(report: Json) -> str:
    """Formats teacher, student and exports as one table, short enough for a model card."""
    length = latency_length(report)
    models = report["models"]
    speeds = [own["size_and_speed"] for own in models.values()]
    latencies = [speed["latency"][length] for speed in speeds]
    agreement = [f"{own['fidelity']['agreement']:.2%}" if name != TEACHER else "-" for name, own in models.items()]
    figures = {
        "parameters": [f"{speed['parameters']:,}" for speed in speeds],
        "MB": [f"{speed['bytes_on_disk'] / 1e6:,.1f}" for speed in speeds],
        f"ms for {length} tokens": [f"{latency['p50']:.1f}" for latency in latencies],
        "times as fast": [f"{latency['times_as_fast']['median']:.2f}" for latency in latencies],
        "accuracy": [f"{own['quality']['accuracy']:.2%}" for own in models.values()],
        "retained": [_retained(own, "accuracy") for own in models.values()],
        "F1": [f"{own['quality']['f1']:.2%}" for own in models.values()],
        "agreement with the teacher": agreement,
    }
    data, threads, on = report["data"], report["settings"]["threads"], report["machine"]["cpu"]
    where = (
        f"Measured on {data['texts']:,} texts of {data['source']}. Latency is for one text on the CPU ({on}, threads: "
        f"{threads})."
    )
    return f"{models_table(list(models), figures)}\n\n{paragraph(where)}"


def eval_results(report: Json) -> list[EvalResult]:
    """The student's metrics for a model card's metadata, which requires a Hub dataset; empty for other data."""
    data = report["data"]
    if not data["is_on_hub"]:
        return []
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=data["source"],
            dataset_name=data["source"],
            dataset_config=data["config_name"],
            dataset_split=data["split"],
            metric_type=metric,
            metric_value=report["models"][STUDENT]["quality"][metric],
        )
        for metric in QUALITY
    ]


def latency_length(report: Json) -> str:
    lengths = report["settings"]["lengths"]
    return str(LATENCY_LENGTH if LATENCY_LENGTH in lengths else max(lengths))


def _speeds(models: Mapping[str, Json]) -> dict[str, Json]:
    return {name: own["size_and_speed"] for name, own in models.items()}


def _retained(own: Json, metric: str) -> str:
    return _share(own["retained"][metric]) if "retained" in own else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 3]}..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
