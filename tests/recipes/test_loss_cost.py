"""The benchmark of the losses on tiny models."""

import json
import sys

from recipes.benchmarks import loss_cost


def test_loss_cost(tmp_path, capsys, monkeypatch):
    """Every side runs a step. Losses over layers take more memory, another divergence hardly any."""
    output = tmp_path / "loss_cost.json"
    options = ["--shape", "tiny", "--task", "classification", "--length", "24", "--pairs", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["loss_cost", *options])
    loss_cost.main()
    printed = capsys.readouterr().out
    measured = json.loads(output.read_text())["sides"]
    assert measured.keys() == loss_cost.SIDES.keys()
    assert all(f"| {name} |" in printed for name in measured)
    memory = {name: figures["memory"] for name, figures in measured.items()}
    three = memory[loss_cost.BASELINE]
    assert three < memory["+ hidden"] < memory["+ hidden + relation"] < memory["+ hidden + attention + relation"]
    assert all(memory[f"divergence={name!r}"] < 1.1 * three for name in loss_cost.DIVERGENCES)


def test_masked_language_models(tmp_path):
    sides = ["hidden + relation instead of the cosine", "two teachers"]
    measured = loss_cost.measure("mlm", loss_cost.SHAPES["tiny"], 2, 8, True, sides, 2)
    assert [len(measured[name]["seconds"]) for name in sides] == [2, 2]
