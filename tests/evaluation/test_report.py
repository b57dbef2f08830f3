"""The comparison with the teacher, computed by hand, and the page."""

import math

import pytest

from hf_distill.evaluation.report import (
    compare_with_teacher,
    comparison_table,
    eval_results,
    examples_list,
    fidelity_table,
    largest_differences,
    published_table,
    quality_table,
)

LOG3, LOG9 = math.log(3), math.log(9)
LOGITS = {  # probabilities of the second class: 0.75, 0.25, 0.9, 0.5; 0.75, 0.75, 0.1, 0.5; the same as the student's
    "teacher": [[0.0, LOG3], [LOG3, 0.0], [0.0, LOG9], [0.0, 0.0]],
    "student": [[0.0, LOG3], [0.0, LOG3], [LOG9, 0.0], [0.0, 0.0]],
    "int8": [[0.0, LOG3], [0.0, LOG3], [0.0, LOG9], [0.0, 0.0]],
}
LABELS = [1, 0, 1, 0]
TEXTS = ["one", "two", "three " * 60, "four"]
KL_2 = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
KL_3 = 0.9 * math.log(9) + 0.1 * math.log(1 / 9)


def test_comparison():
    compared = compare_with_teacher(LOGITS, LABELS)
    assert compared["teacher"]["quality"]["accuracy"] == 1
    assert set(compared["teacher"]) == {"quality"}
    student = compared["student"]
    assert student["quality"]["accuracy"] == 0.5
    assert student["quality"]["f1"] == 0.5  # one of two positives is found
    assert student["quality"]["matthews_correlation"] == 0
    # confidences 0.75, 0.75, 0.9 and 0.5; the second and the third are wrong
    error = (2 * abs(0.75 - 0.5) + 0.9 + 0.5) / 4
    assert student["quality"]["expected_calibration_error"] == pytest.approx(error)
    assert student["retained"] == {"accuracy": 0.5, "f1": 0.5, "matthews_correlation": 0}
    assert student["fidelity"] == pytest.approx({"agreement": 0.5, "kl_to_teacher": (KL_2 + KL_3) / 4})
    assert compared["int8"]["fidelity"] == pytest.approx(
        {"agreement": 0.75, "kl_to_teacher": KL_2 / 4, "agreement_with_student": 0.75}
    )


def test_nothing_is_retained_of_nothing():
    logits = {"teacher": [[1.0, 0.0], [0.0, 1.0]], "student": [[0.0, 1.0], [0.0, 1.0]]}
    compared = compare_with_teacher(logits, [1, 0])
    assert compared["student"]["retained"] == dict.fromkeys(("accuracy", "f1", "matthews_correlation"))
    columns = columns_of(quality_table(compared))
    assert columns["student"][:2] == ["50.00%", "-"]


def test_where_they_part_most():
    examples = largest_differences(LOGITS, LABELS, TEXTS, ["no", "yes"], 3)
    assert [example["row"] for example in examples] == [3, 2, 1]
    first, second, third = examples
    assert first["kl"] == pytest.approx(KL_3)
    assert second == {
        "row": 2,
        "text": "two",
        "label": "no",
        "teacher": {"label": "no", "score": pytest.approx(0.75)},
        "student": {"label": "yes", "score": pytest.approx(0.75)},
        "kl": pytest.approx(KL_2),
    }
    assert first["teacher"] == {"label": "yes", "score": pytest.approx(0.9)}
    assert first["text"] == ("three " * 60)[:157] + "..."
    assert third["kl"] == pytest.approx(0, abs=1e-12)
    assert len(largest_differences(LOGITS, LABELS, TEXTS, ["no", "yes"], 9)) == 4


def test_texts_cannot_break_the_page():
    examples = largest_differences(LOGITS, LABELS, ["a", "b", "x | <br />\ny", "c"], ["no", "yes"], 1)
    first, _, text = examples_list(examples).splitlines()
    assert first == "1. KL 1.758, label yes: teacher yes 90%, student no 90%"
    assert text == r"   > x \| &lt;br /&gt; y"


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
    models = {
        name: {**own, "model": name, "size_and_speed": speeds[name]}
        for name, own in compare_with_teacher(LOGITS, LABELS).items()
    }
    data = {"source": "me/reviews", "is_on_hub": True, "config_name": "en", "split": "test", "texts": 4}
    settings = {"lengths": [16, 128, 256], "threads": 2}
    return {"models": models, "data": data, "settings": settings, "machine": {"cpu": "A CPU"}}


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
    last = "Measured on 4 texts of me/reviews. Latency is for one text on the CPU (A CPU, threads: 2)."
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
    examples = largest_differences(LOGITS, LABELS, TEXTS, ["no", "yes"], 3)
    models = report["models"]
    for shown in (
        *(comparison_table(report), published_table(report), examples_list(examples)),
        *(quality_table(models), fidelity_table(models)),
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
