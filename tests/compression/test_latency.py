"""Predicted latency."""

import random

import pytest
from scipy.stats import spearmanr

from hf_distill import make_student
from hf_distill.compression.costs import Costs, load_product, write_exports
from hf_distill.compression.latency import Cost, Latency, measure
from hf_distill.compression.settings import Settings
from hf_distill.compression.workshop import ALL, Workshop
from hf_distill.evaluation.benchmark_inputs import spread_over
from tests.compression.requests import data_of, write_request


def test_fit_finds_the_weights():
    costs = [Cost(0.008, 6), Cost(0.002, 3), Cost(0.001, 1), Cost(0.004, 2)]
    times = [0.3 + 0.2 * cost.num_layers + 500 * cost.products for cost in costs]
    latency = Latency.fit({"onnx": list(zip(costs, times, strict=True))})
    assert latency.weights["onnx"] == pytest.approx([0.3, 0.2, 500])
    assert latency.milliseconds(Cost(0.003, 4), "onnx") == pytest.approx(0.3 + 0.8 + 1.5)


def test_no_weight_is_below_zero():
    points = [(Cost(0.001, 1), 1.0), (Cost(0.002, 2), 0.9), (Cost(0.01, 6), 0.8)]
    assert min(Latency.fit({"onnx": points}).weights["onnx"]) >= 0


def test_formats_are_in_the_order_of_their_time():
    latency = Latency({"pytorch": [1.0, 1.0, 0.0], "onnx-int8": [0.5, 0.1, 0.0]})
    assert latency.fastest(Cost(0.0, 2)) == [("onnx-int8", 0.7), ("pytorch", 3.0)]


class Slow:
    """A predictor that takes its time, by a clock that it moves."""

    head = "sequence classification"

    def __init__(self, clock, milliseconds):
        self.clock, self.milliseconds, self.read = clock, milliseconds, []

    def predict(self, texts):
        self.clock.now += 1e-3 * self.milliseconds * len(texts)
        self.read.append(texts)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_models_answer_one_input_at_a_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("hf_distill.compression.latency.perf_counter", clock)
    models = {"fast": Slow(clock, 1.0), "slow": Slow(clock, 4.0)}
    assert measure(models, ["a", "b"], rounds=3) == pytest.approx({"fast": 1.0, "slow": 4.0})
    assert models["fast"].read == [["a"], ["b"]] * 4


def test_spread_over():
    assert spread_over(list(range(100)), 4) == [0, 25, 50, 75]
    assert spread_over([1, 2], 4) == [1, 2]


@pytest.mark.long
def test_order_of_students_is_predicted(tmp_path):
    sizes = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    folder = write_request(tmp_path, **sizes)
    settings = Settings(
        teacher=str(folder / "teacher"),
        data=data_of(folder),
        output=folder / "small",
        keep=0.8,
        metric=None,
        max_ms=None,
        max_mb=None,
        budget=3600,
        formats=("onnx", "onnx-int8"),
        workers=1,
        threads=1,
        storage=None,
        sampler="random",
        seed=0,
    )
    settings.write()
    workshop = Workshop.open(settings)
    costs = Costs.open(workshop)
    inputs, draw = spread_over(workshop.inputs()), random.Random(0)
    predicted, students = {}, {}
    for number in range(20):
        own = {name: draw.choice(direction.sizes()) for name, direction in workshop.directions.by_name.items()}
        format, cut = settings.formats[number % 2], make_student(workshop.teacher, **workshop.cut_arguments(own, ALL))
        write_exports(
            cut, workshop.processor, folder / str(number), [format], texts=inputs, min_agreement=0.0, min_cosine=-1.0
        )
        students[number] = load_product(folder / str(number), format, workshop, settings.threads)
        predicted[number] = costs.latency.milliseconds(costs.cost(own), format)
    measured = measure(students, inputs)
    assert spearmanr([*predicted.values()], [measured[number] for number in predicted]).statistic > 0.95
