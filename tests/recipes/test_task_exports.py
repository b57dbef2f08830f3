"""The benchmark of exports of each task on a tiny body: it runs, and its table is right."""

import json
import sys

import pytest

from hf_distill.evaluation import benchmark
from recipes.benchmarks import task_exports
from tests.conftest import make_model, make_text_tokenizer


@pytest.mark.long
def test_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_starts", lambda *args: {"peak_memory": 5_000_000, "cold_start": 0.5})
    for name, value in {"BURST": 1, "BATCH_SIZES": (1,)}.items():
        monkeypatch.setattr(benchmark, name, value)
    make_model("bert", "mlm").save_pretrained(tmp_path / "body")
    make_text_tokenizer().save_pretrained(tmp_path / "body")
    monkeypatch.setattr(task_exports, "fetch", lambda folder: (tmp_path / "body", None))
    monkeypatch.setattr(task_exports, "LENGTH", 16)
    tasks = ["text-classification", "question-answering"]
    words = ["--output", str(tmp_path / "out.json"), "--rounds", "1", "--tasks", *tasks]
    monkeypatch.setattr(sys, "argv", ["task_exports", *words])
    assert task_exports.main() == 0
    measured = json.loads((tmp_path / "out.json").read_text())["tasks"]
    assert [*measured] == tasks
    assert [*measured[tasks[0]]] == ["teacher", "student", "onnx", "onnx-int8"]
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]) == 2 + 8

    monkeypatch.setattr(task_exports, "measure", lambda *args: pytest.fail("a finished task is measured again"))
    assert task_exports.main() == 0


def test_table():
    own = {
        "parameters": 22_700_000,
        "bytes_on_disk": 90_900_000,
        "latency": {"128": {"p50": 10.234, "times_as_fast": {"median": 1.5}}},
        "throughput": {"texts_per_second": 99.6},
    }
    assert task_exports.rows_of("fill-mask", {"teacher": own, "student": own}) == [
        ["fill-mask", "teacher", "22.7", "90.9", "10.23", "1.50", "100"],
        ["", "student", "22.7", "90.9", "10.23", "1.50", "100"],
    ]
