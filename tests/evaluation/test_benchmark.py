"""Figures computed by hand, with a fake clock that only the models advance; and real processes."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_distill import benchmark_models, export_model, load_predictor, push_folder
from hf_distill.cli import main
from hf_distill.deployment.text_encoder import TextEncoder
from hf_distill.evaluation import benchmark
from hf_distill.evaluation.benchmark import percentiles, ratio_over_rounds
from hf_distill.evaluation.benchmark_inputs import exact_input
from hf_distill.evaluation.benchmark_tables import latency_table
from tests.conftest import make_model, make_text_tokenizer, make_texts

TEXTS = make_texts(12)


class FakePredictor:
    """A backend that takes a given number of milliseconds per forward pass, plus `rate` per text, plus `first` after
    another model has run."""

    def __init__(self, world, name, milliseconds, per_text=0.0, first=0.0, format="onnx"):
        self.world, self.name, self.milliseconds, self.per_text = world, name, milliseconds, per_text
        self.first, self.format = first, format
        self.head, self.num_parameters, self.labels = "sequence classification", 100, ["no", "yes"]
        self.reads, self.reads_pairs = "text", False
        tokenizer = make_text_tokenizer()._tokenizer
        self.encoder = TextEncoder(tokenizer, ["input_ids", "attention_mask"], 38, 0)

    def backend(self, inputs):
        num_texts, length = inputs["input_ids"].shape
        last = self.world["calls"][-1][0] if self.world["calls"] else None
        self.world["calls"].append((self.name, num_texts, length))
        milliseconds = self.milliseconds * self.world["slowness"](len(self.world["calls"]))
        self.world["now"] += (milliseconds + self.per_text * num_texts + self.first * (last != self.name)) / 1000
        return {"logits": np.zeros((num_texts, 2), np.float32)}


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Models with given run times."""
    world = {"now": 0.0, "calls": [], "slowness": lambda number: 1.0, "predictors": {}}

    def add(name, milliseconds, **options):
        world["predictors"][name] = FakePredictor(world, name, milliseconds, **options)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * 10 * len(world["predictors"]))
        return tmp_path / name

    def starts(runner, texts, threads):
        return {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}

    monkeypatch.setattr(benchmark, "load_predictor", lambda folder, *rest: world["predictors"][folder.name])
    monkeypatch.setattr(benchmark, "perf_counter", lambda: world["now"])
    monkeypatch.setattr(benchmark, "_starts", starts)
    world["add"] = add
    return world


def test_percentiles_by_hand():
    """The percentiles of 1 to 101 are at positions 50, 95 and 99, with linear interpolation between values."""
    assert percentiles(list(range(101, 0, -1))) == {"p50": 51, "p95": 96, "p99": 100}
    assert percentiles([10.0, 20.0]) == pytest.approx({"p50": 15, "p95": 19.5, "p99": 19.9})


def test_ratios_are_within_a_round():
    assert ratio_over_rounds([10, 40, 90], [5, 10, 60]) == {"median": 2.0, "lowest": 1.5, "highest": 4.0}


def test_figures(world):
    models = {"teacher": world["add"]("t", 8.0), "student": world["add"]("s", 4.0, per_text=0.25)}
    measured = benchmark_models(models, lengths=[16, 4], texts=TEXTS, threads=1, rounds=3)
    assert list(measured.models) == ["teacher", "student"]
    student = measured.models["student"]
    assert student["bytes_on_disk"] == 20
    assert list(student["latency"]) == ["4", "16"]
    for latency in student["latency"].values():
        assert {name: latency[name] for name in ("p50", "p95", "p99")} == pytest.approx(
            {"p50": 4.25, "p95": 4.25, "p99": 4.25}
        )
        assert latency["times_as_fast"] == pytest.approx(dict.fromkeys(("median", "lowest", "highest"), 8 / 4.25))
    # 32 texts: in one batch the student takes 4 + 8 ms and the teacher 8; in batches of 16, 8 + 8 and 16.
    assert student["throughput"]["batch_size"] == 32
    assert student["throughput"]["texts_per_second"] == pytest.approx(32 / 0.012)
    assert student["throughput"]["by_batch_size"]["16"] == pytest.approx(32 / 0.016)
    assert student["throughput"]["by_batch_size"]["1"] == pytest.approx(32 / 0.136)
    assert student["throughput"]["times_as_fast"]["median"] == pytest.approx(8 / 12)
    assert measured.models["teacher"]["throughput"]["times_as_fast"]["highest"] == pytest.approx(1)
    assert measured.settings == {
        "device": "cpu",
        "threads": 1,
        "rounds": 3,
        "warm_up_rounds": 1,
        "forwards_per_round": 10,
        "starts": 3,
        "lengths": [4, 16],
        "texts": 32,
    }
    assert {"python", "hf_distill", "torch", "transformers"} <= measured.versions.keys()
    assert measured.machine["cores"] >= 1
    json.dumps(dataclasses.asdict(measured))


def test_models_take_turns(world):
    """All models run a burst at one length, then at the next length; then at each batch size."""
    models = {name: world["add"](name, 1.0) for name in ("a", "b", "c")}
    benchmark_models(models, lengths=[4, 16], texts=TEXTS, threads=1, rounds=2)
    calls = world["calls"]
    assert len(calls) % 3 == 0
    round_length = len(calls) // 3
    assert calls[:round_length] == calls[round_length : 2 * round_length] == calls[2 * round_length :]
    bursts = [(name, 1, length) for length in (4, 16) for name in "abc" for _ in range(11)]
    assert calls[: len(bursts)] == bursts
    rest = calls[len(bursts) : round_length]
    order = [name for index, (name, *_) in enumerate(rest) if index == 0 or rest[index - 1][0] != name]
    assert order == list("abc") * 5


def test_a_machine_that_slows_down_slows_them_all(world):
    """Each forward pass takes longer than the one before. Ratios hardly change, because models take turns."""
    models = {"teacher": world["add"]("t", 8.0), "student": world["add"]("s", 4.0)}
    world["slowness"] = lambda number: 1 + number / 1000
    measured = benchmark_models(models, lengths=[4], texts=TEXTS, threads=1, rounds=9)
    latency = measured.models["student"]["latency"]["4"]
    assert latency["times_as_fast"]["median"] == pytest.approx(2, rel=0.02)
    assert latency["p99"] > 1.5 * 4


def test_the_first_of_a_burst_does_not_count(world):
    models = {"teacher": world["add"]("t", 8.0, first=50.0), "student": world["add"]("s", 4.0, first=50.0)}
    measured = benchmark_models(models, lengths=[4], texts=TEXTS, threads=1, rounds=2)
    assert measured.models["student"]["latency"]["4"]["p99"] == pytest.approx(4.0)
    assert measured.models["student"]["throughput"]["texts_per_second"] == pytest.approx(32 / 0.004)


def test_one_by_one_as_the_predictor_does(world):
    """ONNX int8 runs one text at a time, also in the benchmark."""
    models = {"teacher": world["add"]("t", 8.0), "int8": world["add"]("i", 1.0, format="onnx-int8")}
    measured = benchmark_models(models, lengths=[4], texts=TEXTS, threads=1, rounds=2)
    throughput = measured.models["int8"]["throughput"]
    assert (throughput["batch_size"], list(throughput["by_batch_size"])) == (1, ["1"])
    assert throughput["times_as_fast"]["median"] == pytest.approx(8 / 32)  # the teacher has one batch
    assert {size for name, size, _ in world["calls"] if name == "i"} == {1}


def test_tables(world):
    models = {"teacher": world["add"]("t", 8.0), "student": world["add"]("s", 4.0)}
    measured = benchmark_models(models, lengths=[4, 16], texts=TEXTS, threads=2, rounds=1)
    lines = latency_table(measured.models).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["teacher", "4", "8.00", "8.00", "8.00", "1.00 (1.00-1.00)"]
    assert cells[5] == ["student", "16", "4.00", "4.00", "4.00", "2.00 (2.00-2.00)"]
    table = measured.table()
    assert max(map(len, table.splitlines())) <= 80
    assert "with 2 threads per model; rounds: 1, after 1 for warm-up." in " ".join(table.split())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[:12]]
    assert rows[0] == ["", "teacher", "student"]
    by_figure = {name: values for name, *values in rows[2:]}
    assert by_figure["format"] == ["onnx", "onnx"]
    assert by_figure["times as fast"] == ["1.00", "2.00"]
    assert by_figure["lowest to highest"] == ["1.00-1.00", "2.00-2.00"]
    assert by_figure["in batches of"] == ["32", "32"]


def test_the_default_lengths_are_those_that_all_models_take(world):
    models = {"teacher": world["add"]("t", 8.0)}
    assert list(benchmark_models(models, texts=TEXTS, threads=1, rounds=1).models["teacher"]["latency"]) == ["16"]


@pytest.mark.parametrize("length", [3, 4, 17, 38])
@pytest.mark.parametrize("texts", [TEXTS, ["w5"], ["w5 w6"]])
def test_exact_lengths(world, texts, length):
    world["add"]("t", 8.0)
    predictor = world["predictors"]["t"]
    inputs = exact_input(predictor, texts, length, "t")
    ids = inputs["input_ids"]
    assert ids.shape == inputs["attention_mask"].shape == (1, length)
    assert inputs["attention_mask"].all()
    assert (ids[0, 0], ids[0, -1]) == (1, 2)  # where a text begins and ends
    words = [int(word[1:]) for word in " ".join([" ".join(texts)] * 40).split()]
    assert ids[0, 1:-1].tolist() == words[: length - 2]
    assert len(predictor.encoder.encode([" ".join(["w5"] * 60)])[0]) == 38  # the predictor's own limit has not changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [39]}, "Cannot measure teacher at 39 tokens: it accepts 3 to 38"),
        ({"lengths": [2]}, "Cannot measure teacher at 2 tokens: it accepts 3 to 38"),
        ({"lengths": []}, "lengths is empty"),
        ({"texts": []}, "texts is empty"),
        ({"texts": ["w5", " "]}, "Text 1 is empty"),
        ({"threads": 0}, "threads=0 must be 1 or more"),
        ({"rounds": 0}, "rounds=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_measured(world, options, message):
    models = {"teacher": world["add"]("t", 8.0)}
    with pytest.raises(ValueError, match=message):
        benchmark_models(models, **{"texts": TEXTS, "threads": 1, **options})
    assert not world["calls"]


def test_no_model():
    with pytest.raises(ValueError, match="No model to measure"):
        benchmark_models({})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher, and its student as ONNX."""
    folder = tmp_path_factory.mktemp("models")
    make_model("bert", "classification").save_pretrained(folder / "teacher")
    make_text_tokenizer().save_pretrained(folder / "teacher")
    export_model(folder / "teacher", folder / "exported", "onnx", texts=TEXTS)
    return folder


@pytest.mark.long
def test_real_models(models, tmp_path, monkeypatch, capsys):
    """In separate processes, the ONNX export does not import PyTorch, needs less memory and starts faster."""
    monkeypatch.setattr(benchmark, "STARTS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        words = [str(models / "teacher"), str(models / "exported"), "--name", "large", "small", "--lengths", "8", "12"]
        (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, ""]), encoding="utf-8")
        words += ["--rounds", "2", "--threads", "1", "--texts", str(tmp_path / "texts.txt")]
        assert main(["benchmark", *words, "--output", str(tmp_path / "out")]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    measured = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    large, small = (measured["models"][name] for name in ("large", "small"))
    assert (large["format"], small["format"]) == ("pytorch", "onnx")
    assert (large["imports_torch"], small["imports_torch"]) == (True, False)
    assert small["peak_memory"] < large["peak_memory"] / 2
    assert 0 < small["cold_start"] < large["cold_start"]
    assert large["parameters"] == small["parameters"] == make_model("bert", "classification").num_parameters()
    assert large["bytes_on_disk"] == (models / "teacher" / "model.safetensors").stat().st_size
    assert small["bytes_on_disk"] == (models / "exported" / "model.onnx").stat().st_size
    assert all(latency["p99"] >= latency["p50"] > 0 for latency in small["latency"].values())
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "benchmark.md").read_text() == printed
    assert not list((tmp_path / "out").glob(".*"))
    for file in (tmp_path / "out").iterdir():
        assert str(models) not in file.read_text()


def test_memory_is_that_of_the_process_alone(models):
    """Memory of the parent process does not count, although `getrusage` would include it on Linux."""
    predictor = load_predictor(models / "exported")
    ballast = np.ones(200_000_000, np.uint8)
    command = [sys.executable, "-m", "hf_distill.deployment.cold_start", str(models / "exported"), "onnx", "1"]
    run = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, check=True)
    assert 10_000_000 < json.loads(run.stdout)["peak_memory"] < ballast.nbytes
    assert predictor.labels


def test_a_folder_is_the_model_in_it_not_an_export_within(models, tmp_path):
    make_model("bert", "classification").save_pretrained(tmp_path / "student")
    make_text_tokenizer().save_pretrained(tmp_path / "student")
    export_model(tmp_path / "student", tmp_path / "student" / "onnx", "onnx", texts=TEXTS)
    assert benchmark.locate_model(tmp_path / "student") == (tmp_path / "student", "pytorch")
    assert benchmark.locate_model(tmp_path / "student" / "onnx") == (tmp_path / "student" / "onnx", "auto")


def test_a_name_on_the_hub(models, hub):
    """A model is downloaded once. An export is loaded in its own format."""
    for name in ("teacher", "exported"):
        push_folder(models / name, name)
    folder, format = benchmark.locate_model("tester/teacher")
    assert format == "pytorch"
    assert (folder / "model.safetensors").read_bytes() == (models / "teacher" / "model.safetensors").read_bytes()
    assert load_predictor(*benchmark.locate_model("tester/exported")).format == "onnx"
    assert benchmark.bytes_on_disk(folder) == (models / "teacher" / "model.safetensors").stat().st_size


def test_a_process_that_fails_says_why(models):
    command = [sys.executable, "-c", "raise SystemExit('no memory left')"]
    with pytest.raises(ValueError, match="student failed in a separate process: no memory left"):
        benchmark._start("student", command, "[]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing/at/all"], "nothing/at/all"),
        (["teacher", "teacher"], "Two models have the same name"),
        (["teacher", "--name", "a", "b"], "Names given: 2, models given: 1"),
        (["teacher", "--lengths", "64"], "Cannot measure teacher at 64 tokens: it accepts 3 to 38"),
        (["empty"], "empty has no model"),
    ],
)
def test_the_command_says_what_is_wrong(models, monkeypatch, capsys, words, message):
    monkeypatch.chdir(models)
    (models / "empty").mkdir(exist_ok=True)
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("hf-distill: ")
