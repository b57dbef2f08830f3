"""A student and its exports beside the teacher: what is compared, and the page that says it."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
from huggingface_hub import EvalResult
from numpy.typing import ArrayLike

from hf_distill.evaluation.benchmark_tables import Json, describe_measuring, latency_table, size_table
from hf_distill.evaluation.classification import agreement, as_logits, classification_metrics, kl_of_rows
from hf_distill.evaluation.tables import markdown_table

TEACHER, STUDENT = "teacher", "student"

QUALITY = {"accuracy": "accuracy", "f1": "F1", "matthews_correlation": "Matthews"}
"""The metrics of which a share is retained, and what they are called in tables."""

LATENCY_LENGTH = 128
"""Of the lengths that are measured, the one that stands for all where there is room for one; else the longest."""

SHOWN = 160
"""How many characters of a text are shown."""

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
"""What others say of their students, on their data and their machines."""


def compare_with_teacher(logits: Mapping[str, ArrayLike], labels: ArrayLike) -> dict[str, Json]:
    """Quality and fidelity of each model.

    Args:
        logits: `[texts, classes]` of "teacher", of "student", and of exports by whatever name; the columns are of the
            same classes for all.
        labels: `[texts]`.

    Returns:
        By model, `quality`: accuracy, F1, Matthews correlation and calibration error, as in `classification_metrics`.
        For all but the teacher `retained`: the shares of the teacher's accuracy, F1 and Matthews correlation, or None
        where that is not above 0; and `fidelity`: `agreement` with the teacher, `kl_to_teacher`, and for exports
        `agreement_with_student`.
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
    """The texts on which student and teacher part most, by KL(teacher || student) in nats, the largest first.

    Args:
        logits: as in `compare_with_teacher`.
        labels: `[texts]`, as numbers.
        texts: `[texts]`; their first characters are kept.
        label_names: the classes by number.
        number: how many.

    Returns:
        For each `row`, counted from 1, `text`, `label`, `teacher` and `student` with `label` and `score`, and `kl`.
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
    """The report as one page of Markdown, beside which the plots are."""
    models, data = report["models"], report["data"]
    parts = [
        f"# {models[STUDENT]['model']} beside {models[TEACHER]['model']}",
        f"{data['texts']:,} texts of {data['source']}, {len(data['labels'])} classes: {_listed(data['labels'])}. "
        + "; ".join(f"{name}: {own['model']} ({own['size_and_speed']['format']})" for name, own in models.items())
        + ".",
        "## Quality",
        quality_table(models),
        "F1 is of the second class where there are two, else the mean over the classes. Calibration error: how far "
        "confidence is from accuracy, in 15 bins.",
        "![Calibration](calibration.png)",
        "## Fidelity",
        fidelity_table(models),
        "KL(teacher || student) is in nats at temperature 1, the mean over the texts.",
        "### Where student and teacher part most",
        examples_table(report["examples"]),
        "## Size and speed",
        size_table(_speeds(models)),
        latency_table(_speeds(models)),
        describe_measuring(report["settings"], report["machine"], report["versions"]),
        "![Quality against latency](quality_against_latency.png)",
        "## Beside what is published",
        published_table(report),
        "Those are of other tasks and other machines: "
        + "; ".join(f"{own['student']}, {own['source']}" for own in PUBLISHED)
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def quality_table(models: Mapping[str, Json]) -> str:
    header = [""]
    for name in QUALITY.values():
        header += [name, "retained"]
    rows = []
    for name, own in models.items():
        row = [name]
        for metric in QUALITY:
            row += [f"{own['quality'][metric]:.2%}", _retained(own, metric)]
        rows.append([*row, f"{own['quality']['expected_calibration_error']:.2%}"])
    return markdown_table([*header, "calibration error"], rows)


def fidelity_table(models: Mapping[str, Json]) -> str:
    rows = []
    for name, own in models.items():
        if name != TEACHER:
            fidelity = own["fidelity"]
            with_student = f"{fidelity['agreement_with_student']:.2%}" if name != STUDENT else "-"
            rows.append([name, f"{fidelity['agreement']:.2%}", f"{fidelity['kl_to_teacher']:.4f}", with_student])
    return markdown_table(["", "agreement with the teacher", "KL to the teacher", "agreement with the student"], rows)


def examples_table(examples: Sequence[Json]) -> str:
    rows = [
        [
            html.escape(own["text"], quote=False),
            own["label"],
            *(f"{own[name]['label']} {own[name]['score']:.0%}" for name in (TEACHER, STUDENT)),
            f"{own['kl']:.3f}",
        ]
        for own in examples
    ]
    return markdown_table(["text", "label", TEACHER, STUDENT, "KL"], rows)


def published_table(report: Json) -> str:
    models = report["models"]
    length = latency_length(report)
    speed = models[STUDENT]["size_and_speed"]["latency"][length]["times_as_fast"]["median"]
    sizes = {name: models[name]["size_and_speed"]["parameters"] for name in (TEACHER, STUDENT)}
    own = {"parameters": sizes, "times_as_fast": speed, "retained": models[STUDENT]["retained"]["accuracy"]}
    own |= {"student": "this student", "teacher": "its teacher", "of": "accuracy"}
    header = ["", "teacher's parameters", "parameters", "share", "times as fast", "retained", "of"]
    rows = []
    for row in [own, *PUBLISHED]:
        larger, smaller = row["parameters"][TEACHER], row["parameters"][STUDENT]
        counts = [f"{larger / 1e6:,.1f} M", f"{smaller / 1e6:,.1f} M", f"{smaller / larger:.2f}"]
        name = f"{row['student']}, {row['teacher']}"
        rows.append([name, *counts, f"{row['times_as_fast']:.2f}", _share(row["retained"]), row["of"] or "-"])
    return markdown_table(header, rows)


def comparison_table(report: Json) -> str:
    """Teacher, student and exports in one table, short enough for a model card."""
    length = latency_length(report)
    header = ["", "parameters", "MB", f"ms for {length} tokens", "times as fast"]
    header += ["accuracy", "retained", "F1", "agreement with the teacher"]
    rows = []
    for name, own in report["models"].items():
        speed, quality = own["size_and_speed"], own["quality"]
        rows.append(
            [
                name,
                f"{speed['parameters']:,}",
                f"{speed['bytes_on_disk'] / 1e6:,.1f}",
                f"{speed['latency'][length]['p50']:.1f}",
                f"{speed['latency'][length]['times_as_fast']['median']:.2f}",
                f"{quality['accuracy']:.2%}",
                _retained(own, "accuracy"),
                f"{quality['f1']:.2%}",
                f"{own['fidelity']['agreement']:.2%}" if name != TEACHER else "-",
            ]
        )
    data, threads, on = report["data"], report["settings"]["threads"], report["machine"]["cpu"]
    return (
        f"{markdown_table(header, rows)}\n\nOn {data['texts']:,} texts of {data['source']}; latency of one text on the "
        f"CPU ({on}, threads: {threads})."
    )


def eval_results(report: Json) -> list[EvalResult]:
    """The student's metrics for a model card's metadata; none if the data is not on the Hub, which that asks for."""
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
