"""The benchmark with TRL on tiny models. Without TRL and ModelOpt, their part is skipped."""

import json
import sys

import pytest
import torch

from recipes.benchmarks import trl_peer
from recipes.benchmarks.split_invariance import make_rows
from tests.processes import PROCESSES

OURS, GKD, TRL, BY_HAND, MODELOPT = trl_peer.SIDES


@pytest.fixture(autouse=True)
def quick_processes(monkeypatch):
    monkeypatch.setattr(trl_peer, "PROCESSES", PROCESSES)


@pytest.mark.long
def test_trl_peer(tmp_path, monkeypatch, capsys):
    """Ours is exact however a step is split; a mean over the tokens of each batch is not."""
    output = tmp_path / "trl_peer.json"
    options = ["--shape", "tiny", "--rounds", "2", "--sides", OURS, BY_HAND, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["trl_peer", *options])
    trl_peer.main()
    printed = capsys.readouterr().out
    assert printed.count(f"| {OURS} | ") == printed.count(f"| {BY_HAND} | ") == 2
    measured = json.loads(output.read_text())
    exactness, cost = measured["exactness"], measured["cost"]
    for name in ("loss, 4 batches of 4", "gradient, 4 batches of 4", "loss, two processes", "gradient, two processes"):
        assert abs(exactness[OURS][name]) < 1e-6
        assert abs(exactness[BY_HAND][name]) > 1e-3
    assert exactness[BY_HAND]["loss, 4 batches of 4"] == pytest.approx(3, abs=0.2)
    assert exactness[BY_HAND]["loss"] == pytest.approx(exactness[OURS]["loss"], rel=1e-6)
    assert exactness[BY_HAND]["loss at T = 2"] == pytest.approx(exactness[OURS]["loss at T = 2"], rel=1e-6)
    for own in cost.values():
        assert own["loss"] == pytest.approx(cost[OURS]["loss"], rel=1e-5)
        assert len(own["cpu"]) == len(own["wall"]) == 2
        assert own["process"] > own["memory"] > own["without gradients"] > 0
    gradients = {own["memory"] - own["without gradients"] for own in cost.values()}
    assert len(gradients) == 1  # the students are the same
    assert "16 rows of 4 to 16 tokens. Only completions have labels: the last 1 to 10 tokens of a row." in printed


def test_rows_are_prompts_and_completions():
    """The rows of the exactness table: labels on the completion alone, and unequal numbers of them in every batch."""
    labels = [torch.tensor(row["labels"]) for row in make_rows("causal LM")]
    for own in labels[:-1]:  # the last row has no prompt
        number = int(own.ne(-100).sum())
        assert own[:-number].eq(-100).all()
        assert own[-number:].ne(-100).all()
    for size in (4, 8):
        assert len({int(torch.cat(labels[first : first + size]).ne(-100).sum()) for first in range(0, 16, size)}) > 1


def test_trl(tmp_path):
    """What is claimed of TRL in docs/compare.md."""
    pytest.importorskip("trl")
    exactness = trl_peer.measure_exactness([OURS, GKD, TRL], tmp_path)
    assert abs(exactness[OURS]["gradient, two processes"]) < 1e-6
    for own in exactness.values():
        assert own["loss"] == pytest.approx(exactness[OURS]["loss"], rel=1e-6)
        assert abs(own["gradient, 4 batches of 4"]) < 1e-6
    assert exactness[TRL]["gradient, two processes"] < 1e-6
    assert exactness[GKD]["loss, two processes"] == pytest.approx(-0.5, abs=1e-6)
    assert exactness[GKD]["gradient, two processes"] == pytest.approx(0.5, abs=1e-6)
    assert exactness[GKD]["loss at T = 2"] == exactness[GKD]["loss"]


def test_modelopt(tmp_path):
    """What is claimed of ModelOpt in docs/compare.md."""
    pytest.importorskip("modelopt")
    own = trl_peer.measure_exactness([MODELOPT], tmp_path)[MODELOPT]
    assert own["loss, 4 batches of 4"] == pytest.approx(3, abs=0.2)


def test_prompts_and_completions():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 7, 8], [5, 6, -100, -100]]),
    }
    split = {name: values.tolist() for name, values in trl_peer.split_prompts(batch).items()}
    assert split == {
        "prompt_ids": [[5, 6], [0, 5]],
        "prompt_mask": [[1, 1], [0, 1]],
        "completion_ids": [[7, 8], [6, 0]],
        "completion_mask": [[1, 1], [1, 0]],
    }


def test_only_what_is_installed(monkeypatch):
    monkeypatch.setattr(trl_peer, "find_spec", lambda module: None if module == "trl" else True)
    assert trl_peer.installed() == [OURS, BY_HAND, MODELOPT]
