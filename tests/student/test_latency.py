"""The predicted latency: which products are counted, how often each is measured, and what a round does."""

import pytest
import torch
from torch import nn

from hf_distill import make_student
from hf_distill.student import latency
from hf_distill.student.latency import measure_products, product_seconds, products_of
from tests.conftest import make_model


class Clock:
    """Each look at it is one second later than the one before, or what `then` gives."""

    def __init__(self, then=None):
        self.now, self.looks, self.then = 0.0, 0, then or (lambda look: 1.0)

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.then(self.looks)
        return self.now


def test_products_of_models():
    assert products_of(make_model("bert", "classification")) == {(16, 16): 17, (16, 32): 4, (32, 16): 4, (16, 2): 1}
    assert products_of(make_model("gpt2", "causal"))[16, 48] == 4  # GPT-2 has Conv1D
    assert products_of(make_model("resnet", "image")).total() == 1
    assert not products_of(nn.Embedding(7, 3))


def test_each_shape_is_measured_once_for_all_models():
    asked = []

    def measure(products, num_tokens):
        asked.append((sorted(products), num_tokens))
        return {(inputs, outputs): inputs * outputs / 1e6 for inputs, outputs in products}

    teacher = make_model("bert", "classification")
    students = [make_student(teacher), make_student(teacher, intermediate_size=8)]
    predicted = product_seconds([teacher, *students], 64, measure)
    assert asked == [([(8, 16), (16, 2), (16, 8), (16, 16), (16, 32), (32, 16)], 64)]
    sizes = [17 * 256 + 4 * 1024 + 32, 9 * 256 + 2 * 1024 + 32, 17 * 256 + 4 * 256 + 32]
    assert predicted == pytest.approx([size / 1e6 for size in sizes])


def test_the_fastest_round_counts():
    measured = measure_products([(4, 3)], 5, Clock(lambda look: 0.01 * (look % 7)))
    assert measured == {(4, 3): pytest.approx(0.0, abs=1e-9)}
    assert measure_products([(4, 3), (3, 4)], 5, Clock(lambda look: 0.25)) == {(4, 3): 0.25, (3, 4): 0.25}


def test_the_time_is_limited():
    clock = Clock()
    measure_products([(4, 3)], 5, clock)
    warm_up, rounds = 1, 2 * latency.FEWEST_ROUNDS
    assert clock.looks == 1 + warm_up + rounds + 1  # the last look finds that the time is over
    clock = Clock(lambda look: 1e-6)
    measure_products([(4, 3)], 5, clock)
    assert clock.looks > 2 * latency.MOST_ROUNDS


def test_a_part_of_a_large_product_is_measured(monkeypatch):
    monkeypatch.setattr(latency, "LARGEST", 32)
    rows = []
    linear = latency.F.linear
    monkeypatch.setattr(latency.F, "linear", lambda row, weight: rows.append(weight.shape) or linear(row, weight))
    measured = measure_products([(16, 4), (64, 2), (2, 16)], 5, Clock())
    assert set(rows) == {(2, 16), (1, 64), (16, 2)}
    assert measured == {(16, 4): 2.0, (64, 2): 2.0, (2, 16): 1.0}


def test_on_the_cpu_of_this_machine():
    model, state = make_model("bert", "mlm"), torch.get_rng_state()
    threads = torch.get_num_threads()
    with torch.device("meta"):
        (seconds,) = product_seconds([model])
    assert 0 < seconds < 1
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert product_seconds([nn.ReLU()]) == [0]
