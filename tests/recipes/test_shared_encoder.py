"""The benchmark of a shared encoder on tiny models."""

import json
import sys

import pytest

from recipes.benchmarks import shared_encoder


def test_shared_encoder(tmp_path, capsys, monkeypatch):
    """Every side runs a step, and sharing changes no loss."""
    output = tmp_path / "shared_encoder.json"
    sizes = ["--shape", "tiny", "--layers", "1", "--length", "12", "--target-length", "6", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["shared_encoder", *sizes, "--output", str(output)])
    shared_encoder.main()
    printed = capsys.readouterr().out
    measured = json.loads(output.read_text())["sides"]
    assert [*measured] == [*shared_encoder.SIDES]
    assert all(f"| {name} |" in printed for name in measured)
    losses = [own["loss"] for own in measured.values()]
    assert losses == pytest.approx(losses[:1] * 3)
