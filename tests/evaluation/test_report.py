"""The page of a report, its tables and its examples."""

import math
from dataclasses import asdict

import pytest

from hf_distill.evaluation import classification_metrics
from hf_distill.evaluation.report import (
    PUBLISHED,
    Metric,
    comparison_table,
    eval_results,
    examples_list,
    fidelity_table,
    published_table,
    quality_table,
    retained,
    shortened,
)

LOG3, LOG9 = math.log(3), math.log(9)
LOGITS = {  # probabilities of the second class: 0.75, 0.25, 0.9, 0.5; 0.75, 0.75, 0.1, 0.5; the same as the student's
    "teacher": [[0.0, LOG3], [LOG3, 0.0], [0.0, LOG9], [0.0, 0.0]],
    "student": [[0.0, LOG3], [0.0, LOG3], [LOG9, 0.0], [0.0, 0.0]],
    "int8": [[0.0, LOG3], [0.0, LOG3], [0.0, LOG9], [0.0, 0.0]],
}
LABELS = [1, 0, 1, 0]


METRICS = {
    "quality": {
        "accuracy": Metric("accuracy"),
        "f1": Metric("F1"),
        "matthews_correlation": Metric("Matthews"),
        "expected_calibration_error": Metric("calibration error", higher_is_better=False),
    },
    "fidelity": {
        "agreement": Metric("agreement with the teacher"),
        "kl_to_teacher": Metric("KL to the teacher", ".4f", higher_is_better=False),
    },
}


def compared():
    """By model, its metrics."""
    models = {}
    for name, own in LOGITS.items():
        models[name] = {"quality": classification_metrics(own, LABELS)}
        if name != "teacher":
            models[name]["retained"] = retained(
                METRICS["quality"], models["teacher"]["quality"], models[name]["quality"]
            )
            models[name]["fidelity"] = classification_metrics(own, teacher_logits=LOGITS["teacher"])
    models["int8"]["fidelity_to_student"] = classification_metrics(LOGITS["int8"], teacher_logits=LOGITS["student"])
    return models


def test_what_is_retained():
    assert compared()["student"]["retained"] == {"accuracy": 0.5, "f1": 0.5, "matthews_correlation": 0}


def test_nothing_is_retained_of_nothing(report):
    metrics = {"accuracy": Metric("accuracy"), "error": Metric("error", higher_is_better=False), "f2": Metric("F2")}
    shares = retained(metrics, {"accuracy": 0.0, "error": 0.5}, {"accuracy": 0.5, "error": 0.5})
    assert shares == {"accuracy": None}
    report["models"]["student"]["retained"]["accuracy"] = None
    assert columns_of(quality_table(report))["student"][:2] == ["50.00%", "-"]


EXAMPLES = [
    {"row": 3, "input": "x | <br /> y", "label": "yes", "teacher": "yes 90%", "student": "no 90%", "difference": 1.758},
    {"row": 2, "input": "two", "label": "no", "teacher": "no 75%", "student": "yes *75%*", "difference": 0.549},
]


def test_texts_cannot_break_the_page():
    first, _, text, _, second, *_ = examples_list(EXAMPLES).splitlines()
    assert first == "1. difference 1.758, label yes: teacher yes 90%, student no 90%"
    assert text == r"   > x \| &lt;br /&gt; y"
    assert second.endswith(r"student yes \*75%\*")


def test_long_texts_are_shortened():
    assert shortened("three\n" * 60) == ("three " * 60)[:157] + "..."


@pytest.fixture
def report():
    latency = {"p50": 4.0, "p95": 5.0, "p99": 6.0}

    def speed(times_as_fast, parameters):
        ratio = {"median": times_as_fast, "lowest": 1.0, "highest": 9.0}
        return {
            "parameters": parameters,
            "bytes_on_disk": 4 * parameters,
            "latency": {
                length: {**latency, "times_as_fast": {**ratio, "median": times_as_fast * factor}}
                for length, factor in (("16", 2), ("128", 1), ("256", 3))
            },
        }

    speeds = {"teacher": speed(1.0, 110_000_000), "student": speed(1.5, 55_000_000), "int8": speed(6.0, 55_000_000)}
    models = {name: {**own, "model": name, "size_and_speed": speeds[name]} for name, own in compared().items()}
    data = {"source": "me/reviews", "is_on_hub": True, "config_name": "en", "split": "test", "rows": 4}
    settings = {"lengths": [16, 128, 256], "threads": 2}
    metrics = {kind: {name: asdict(own) for name, own in of_kind.items()} for kind, of_kind in METRICS.items()}
    report = {"models": models, "data": data, "settings": settings, "machine": {"cpu": "A CPU"}, "metrics": metrics}
    return report | {"pipeline_tag": "text-classification", "published": PUBLISHED}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def columns_of(table):
    """By model, the figures."""
    lines = [cells(line) for line in table.splitlines() if line.startswith("|")]
    return {name: list(figures) for name, _, *figures in zip(*lines, strict=True)}


def test_the_table_for_a_card(report):
    table = comparison_table(report)
    columns = columns_of(table)
    assert columns[""][2] == "ms for 128 tokens"
    assert columns["teacher"] == ["110,000,000", "440.0", "4.0", "1.00", "100.00%", "-", "100.00%", "-"]
    assert columns["int8"] == ["55,000,000", "220.0", "4.0", "6.00", "75.00%", "75.0%", "80.00%", "75.00%"]
    last = "Measured on 4 rows of me/reviews. Latency is for one input on the CPU (A CPU, threads: 2)."
    assert " ".join(table.splitlines()[-2:]).endswith(last)
    report["settings"]["lengths"] = [16]
    assert "ms for 16 tokens" in comparison_table(report)


def test_beside_what_is_published(report):
    table = published_table(report)
    columns = columns_of(table)
    assert columns["this student"] == ["its teacher", "110.0 M", "55.0 M", "0.50", "1.50", "50.0%", "accuracy"]
    assert columns["DistilBERT"] == ["BERT-base", "110.0 M", "66.0 M", "0.60", "1.60", "97.0%", "GLUE"]
    assert columns["DistilRoBERTa"] == ["RoBERTa-base", "125.0 M", "82.0 M", "0.66", "2.00", "-", "-"]


def test_tables_fit_eighty_columns(report):
    for shown in (
        *(comparison_table(report), published_table(report), examples_list(EXAMPLES)),
        *(quality_table(report), fidelity_table(report)),
    ):
        assert max(map(len, shown.splitlines())) <= 80


def test_metadata_for_a_card(report):
    results = eval_results(report)
    assert {result.metric_type: result.metric_value for result in results} == {
        "accuracy": 0.5,
        "f1": 0.5,
        "matthews_correlation": 0,
    }
    assert {(own.dataset_type, own.dataset_config, own.dataset_split) for own in results} == {
        ("me/reviews", "en", "test")
    }
    report["data"]["is_on_hub"] = False
    assert eval_results(report) == []
    assert {result.task_type for result in results} == {"text-classification"}


def test_agreement_with_the_student(report):
    columns = columns_of(fidelity_table(report))
    assert columns[""] == ["agreement with the teacher", "KL to the teacher", "agreement with the student"]
    assert columns["student"][-1] == "-"
    assert columns["int8"] == ["75.00%", f"{report['models']['int8']['fidelity']['kl_to_teacher']:.4f}", "75.00%"]
