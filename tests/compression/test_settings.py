"""Requests that cannot be met, and the time of a search."""

import dataclasses

import pytest

from hf_distill import TASKS, TextClassificationArguments
from hf_distill.compression.settings import Clock, Settings, seconds_of
from tests.compression.test_choice import SETTINGS


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("1h", 3600), ("30m", 1800), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), (20, 20), ("7", 7)],
)
def test_budget(words, seconds):
    assert seconds_of(words) == seconds


@pytest.mark.parametrize("words", ["soon", "1 day", "h", "", "-5m", 0])
def test_bad_budget(words):
    with pytest.raises(ValueError, match="budget="):
        seconds_of(words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 1.2}, "keep=1.2 must be between 0 and 1"),
        ({"keep": 1.0}, "That all of it is kept cannot be shown"),
        ({"keep": 0.0}, "keep=0.0"),
        ({"max_ms": -1.0}, "max_ms=-1.0 must be above 0"),
        ({"max_mb": 0.0}, "max_mb=0.0 must be above 0"),
        ({"workers": 0}, "workers=0"),
        ({"sampler": "grid"}, "sampler='grid' must be one of tpe, random"),
        ({"formats": ("gguf",)}, "formats has 'gguf'"),
        ({"data": TextClassificationArguments(train_file="a.csv")}, "give test_file"),
        (
            {"data": TextClassificationArguments(train_file="a.csv", test_file="b.csv", model_name_or_path="m")},
            "leave out model_name_or_path",
        ),
        (
            {"data": TASKS["fill-mask"].arguments(train_file="a.txt", test_file="b.txt")},
            "which fill-mask does not support",
        ),
    ],
)
def test_bad_requests(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes).check()


def test_formats_of_a_model_that_generates():
    assert set(SETTINGS.tried_formats(generates=True)) == {"pytorch", "torch-int8"}
    assert dataclasses.replace(SETTINGS, formats=("pytorch",)).tried_formats(generates=True) == ("pytorch",)
    assert set(SETTINGS.tried_formats(generates=False)) == {"pytorch", "onnx", "onnx-int8"}
    with pytest.raises(ValueError, match="formats has onnx, but a model that generates has only"):
        dataclasses.replace(SETTINGS, formats=("onnx",)).tried_formats(generates=True)


def test_settings_are_read_as_written(tmp_path):
    settings = dataclasses.replace(SETTINGS, output=tmp_path, formats=("pytorch",))
    settings.write()
    assert Settings.read(tmp_path) == settings
    with pytest.raises(ValueError, match="has no search"):
        Settings.read(tmp_path / "other")


def test_clock_goes_on_where_it_stopped(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("hf_distill.compression.settings.time.time", lambda: now[0])
    clock = Clock(100.0, tmp_path / "clock.json")
    now[0] += 30
    clock.record()
    now[0] += 500  # the process is gone
    resumed = Clock(100.0, tmp_path / "clock.json")
    now[0] += 10
    assert resumed.left() == pytest.approx(60)
