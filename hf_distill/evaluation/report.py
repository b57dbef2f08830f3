"""Formats the comparison of a student and its exports with the teacher as a page."""

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult

from hf_distill.evaluation.benchmark_tables import Json, describe_measuring, latency_table, size_table
from hf_distill.evaluation.tables import WIDTH, models_table, paragraph

TEACHER, STUDENT = "teacher", "student"

LATENCY_LENGTH = 128
"""Length, in tokens, whose latency is reported where there is room for one; else the longest measured length."""

SHOWN = 160
"""Characters shown of each example."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        title: name in tables.
        format: format of its values.
        higher_is_better: if True, a report also shows the share of the teacher's value that is retained.
    """

    title: str
    format: str = ".2%"
    higher_is_better: bool = True


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


def retained(
    metrics: Mapping[str, Metric], teacher: Mapping[str, float], own: Mapping[str, float]
) -> dict[str, float | None]:
    """The share of the teacher's value for each metric where more is better; None if the teacher's is not above 0."""
    return {
        name: own[name] / teacher[name] if teacher[name] > 0 else None
        for name, metric in metrics.items()
        if metric.higher_is_better and name in teacher
    }


def report_page(report: Json) -> str:
    """Formats the report as one Markdown page. It shows the plots that lie in the same folder."""
    models, data = report["models"], report["data"]
    labels = data["labels"]
    classes = f", {len(labels)} classes: {_listed(labels)}" if labels else ""
    parts = [
        f"# {models[STUDENT]['model']} compared with {models[TEACHER]['model']}",
        paragraph(
            f"{data['rows']:,} rows of {data['source']}{classes}. "
            + "; ".join(f"{name}: {own['model']} ({own['size_and_speed']['format']})" for name, own in models.items())
            + "."
        ),
        "## Quality",
        quality_table(report),
        paragraph(f"Retained is the share of the teacher's figure. {report['notes']}"),
        *(f"![{title}]({file})" for title, file in report["plots"]),
        "## Fidelity",
        fidelity_table(report),
        "### Rows on which student and teacher differ most",
        examples_list(report["examples"]) or "There are none.",
        "## Size and speed",
        size_table(_speeds(models)),
        latency_table(_speeds(models)),
        describe_measuring(report["settings"], report["machine"], report["versions"]),
        "![Quality against latency](quality_against_latency.png)",
    ]
    if report["published"]:
        parts += [
            "## Compared with published students",
            published_table(report),
            "The published figures come from other tasks and other machines:\n\n"
            + "\n".join(f"- {own['student']}: {own['source']}" for own in report["published"]),
        ]
    return "\n\n".join(parts) + "\n"


def quality_table(report: Json) -> str:
    models, figures = report["models"], {}
    for name, metric in _shown(report, "quality").items():
        figures[metric.title] = [format(own["quality"][name], metric.format) for own in models.values()]
        if metric.higher_is_better:
            figures[f"{metric.title}, retained"] = [_retained(own, name) for own in models.values()]
    return models_table(list(models), figures)


def fidelity_table(report: Json) -> str:
    others = {name: own for name, own in report["models"].items() if name != TEACHER}
    shown = _shown(report, "fidelity")
    figures = {
        metric.title: [format(own["fidelity"][name], metric.format) for own in others.values()]
        for name, metric in shown.items()
    }
    first, metric = next(iter(shown.items()))
    figures[metric.title.replace("teacher", "student")] = [
        format(own["fidelity_to_student"][first], metric.format) if "fidelity_to_student" in own else "-"
        for own in others.values()
    ]
    return models_table(list(others), figures)


def examples_list(examples: Sequence[Json]) -> str:
    """A numbered list: the label, what both models predict, how much they differ, and below it the input."""
    return "\n\n".join(_example(number, own) for number, own in enumerate(examples, start=1))


def _example(number: int, example: Json) -> str:
    said = f"label {example['label']}: " + ", ".join(f"{name} {example[name]}" for name in (TEACHER, STUDENT))
    return (
        f"{number}. difference {example['difference']:.3f}, {_plain(said)}\n\n"
        f"{textwrap.indent(textwrap.fill(_plain(example['input']), WIDTH - 5), '   > ')}"
    )


def published_table(report: Json) -> str:
    models = report["models"]
    length = latency_length(report)
    speed = models[STUDENT]["size_and_speed"]["latency"][length]["times_as_fast"]["median"]
    sizes = {name: models[name]["size_and_speed"]["parameters"] for name in (TEACHER, STUDENT)}
    metric = main_metric(report)
    own = {"parameters": sizes, "times_as_fast": speed, "retained": models[STUDENT]["retained"][metric]}
    own |= {"student": "this student", "teacher": "its teacher", "of": _shown(report, "quality")[metric].title}
    rows = [own, *report["published"]]
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
    figures = {
        "parameters": [f"{speed['parameters']:,}" for speed in speeds],
        "MB": [f"{speed['bytes_on_disk'] / 1e6:,.1f}" for speed in speeds],
        f"ms for {input_of_length(length)}": [f"{latency['p50']:.1f}" for latency in latencies],
        "times as fast": [f"{latency['times_as_fast']['median']:.2f}" for latency in latencies],
    }
    main = main_metric(report)
    for name, metric in list(_shown(report, "quality").items())[:2]:
        figures[metric.title] = [format(own["quality"][name], metric.format) for own in models.values()]
        if name == main and metric.higher_is_better:
            figures["retained"] = [_retained(own, name) for own in models.values()]
    first, metric = next(iter(_shown(report, "fidelity").items()))
    figures[metric.title] = [
        format(own["fidelity"][first], metric.format) if "fidelity" in own else "-" for own in models.values()
    ]
    data, threads, on = report["data"], report["settings"]["threads"], report["machine"]["cpu"]
    where = (
        f"Measured on {data['rows']:,} rows of {data['source']}. Latency is for one input on the CPU ({on}, threads: "
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
            task_type=report["pipeline_tag"],
            dataset_type=data["source"],
            dataset_name=data["source"],
            dataset_config=data["config_name"],
            dataset_split=data["split"],
            metric_type=metric,
            metric_value=report["models"][STUDENT]["quality"][metric],
        )
        for metric in report["models"][STUDENT]["retained"]
    ]


def latency_length(report: Json) -> str:
    lengths = report["settings"]["lengths"]
    return str(LATENCY_LENGTH if LATENCY_LENGTH in lengths else max(lengths))


def input_of_length(length: str) -> str:
    """What the latency is of: a text of this many tokens, an image or a recording."""
    return {"image": "one image", "audio": "one recording"}.get(length, f"{length} tokens")


def main_metric(report: Json) -> str:
    """The most important metric of the quality."""
    return next(iter(_shown(report, "quality")))


def metric_title(report: Json, name: str) -> str:
    """The name of a metric of the quality in tables."""
    return _shown(report, "quality")[name].title


def shortened(text: str) -> str:
    """The first characters of a text, without line breaks."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 3]}..."


def _shown(report: Json, kind: str) -> dict[str, Metric]:
    """The metrics of `quality` or `fidelity` that this report has, in their order."""
    measured = report["models"][STUDENT][kind]
    return {name: Metric(**own) for name, own in report["metrics"][kind].items() if name in measured}


def _speeds(models: Mapping[str, Json]) -> dict[str, Json]:
    return {name: own["size_and_speed"] for name, own in models.items()}


def _retained(own: Json, metric: str) -> str:
    return _share(own["retained"][metric]) if "retained" in own else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _plain(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", html.escape(text, quote=False))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
