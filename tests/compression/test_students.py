"""Which formats of a student are measured."""

import dataclasses
from types import SimpleNamespace

import pytest

from hf_distill.compression import students
from hf_distill.compression.students import Maker, Recipe
from tests.compression.test_choice import SETTINGS, kept_of

TIMES = {"onnx-int8": 1.0, "onnx": 2.0, "pytorch": 3.0}


@pytest.mark.parametrize(
    ("of_int8", "measured"),
    [(0.99, ["onnx-int8"]), (0.97, ["onnx-int8", "onnx"]), (0.92, ["onnx-int8"])],
    ids=["keeps enough", "almost enough", "far too little"],
)
def test_slower_formats_are_measured_if_they_might_keep_enough(monkeypatch, tmp_path, of_int8, measured):
    """ONNX and PyTorch, both in fp32, predict the same, so PyTorch is not measured after ONNX."""
    settings = dataclasses.replace(SETTINGS, keep=0.965)
    latency = SimpleNamespace(fastest=lambda cost: list(TIMES.items()), milliseconds=lambda cost, format: TIMES[format])
    judge = SimpleNamespace(rows=[], kept=kept_of)
    workshop = SimpleNamespace(settings=settings, judge=judge, test_units=2000, inputs=lambda: [["a text"]])
    maker = Maker(workshop, SimpleNamespace(cost=lambda sizes: None, latency=latency))
    monkeypatch.setattr(maker, "_share", lambda *_: 1.0)
    monkeypatch.setattr(maker, "predictions", lambda folder, format, rows: of_int8 if format == "onnx-int8" else 0.972)
    monkeypatch.setattr(students, "write_exports", lambda *_, **__: None)
    monkeypatch.setattr(students, "megabytes_on_disk", lambda *_: 1.0)
    recipe = Recipe({"num_layers": 2}, "spread", "all", "all", "teacher", 1e-4, 100)
    products = maker._products(None, None, recipe, tmp_path, formats=None)
    assert [own.format for own in products] == measured
