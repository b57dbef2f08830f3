"""The benchmark of a training step on tiny models: all sides give the same loss, and ours holds the least memory."""

import copy
import json
import sys

import pytest
import torch

from recipes.benchmarks import training_step


def test_training_step(tmp_path, monkeypatch, capsys):
    """All sides give the same loss, and ours uses the least memory."""
    output = tmp_path / "training_step.json"
    sides = ["common pattern", "common pattern, same positions", "ours", "ours, bf16"]
    options = ["--shape", "tiny", "--rounds", "1", "--sides", *sides, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["training_step", *options])
    monkeypatch.setitem(training_step.MATRIX_SIZES, "cpu", 64)  # CPUs without bf16 take minutes for large ones
    training_step.main()
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in sides)
    measured = json.loads(output.read_text())["sides"]
    reference = measured["common pattern, same positions"]
    assert measured["ours"]["loss"] == pytest.approx(reference["loss"], rel=1e-6)
    assert measured["ours, bf16"]["loss"] == pytest.approx(reference["loss"], rel=1e-2)
    assert measured["ours"]["memory"] < reference["memory"] < measured["common pattern"]["memory"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_share_of_the_matrix_peak(tmp_path):
    measured = training_step.measure(training_step.SHAPES["gpu"], "labels", ["ours, bf16"], 5, tmp_path)
    assert 1 / measured["ours, bf16"]["times the floor"] >= 0.2


def test_counting_operations_leaves_the_shape_as_it_is(tmp_path):
    """The count takes eager attention, which a later measurement of the same shape must not inherit."""
    shape = copy.deepcopy(training_step.SHAPES["tiny"])
    training_step.measure(shape, "labels", ["ours"], 1, tmp_path, "cpu")
    assert shape.model(shape.config).config._attn_implementation == "sdpa"


def test_textbrewer_gives_the_same_loss(tmp_path):
    """Compared with the common pattern and ours, over all positions."""
    sides = ["common pattern", "TextBrewer", "ours"]
    measured = training_step.measure(training_step.SHAPES["tiny"], "attended", sides, 1, tmp_path)
    for name in sides:
        assert measured[name]["loss"] == pytest.approx(measured["ours"]["loss"], rel=1e-5), name


def test_floor_of_a_training_step():
    """By hand: two floating-point operations per matrix weight and token, and per pair of tokens in attention."""
    shape = training_step.SHAPES["tiny"]
    tokens, width, wide, vocab_size = 4 * 32, 32, 64, shape.config.vocab_size
    layer = 2 * tokens * (4 * width * width + 2 * width * wide) + 4 * tokens * 32 * width
    head = 2 * (width * width + width * vocab_size)
    student = copy.deepcopy(shape.config)
    student.num_hidden_layers = 1
    flops = training_step.floor_flops(shape.config, student, shape, num_scored=10)
    assert flops == 2 * layer + 10 * head + 3 * (layer + 10 * head)
