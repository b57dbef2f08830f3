"""Predicted latency."""

import pytest

from hf_distill.compression.latency import Cost, Latency, measure
from hf_distill.evaluation.benchmark_inputs import spread_over


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
