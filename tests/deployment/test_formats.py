"""The table of formats: its rows, and a custom row."""

import json
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest

from hf_distill import benchmark_models, export_model, load_predictor
from hf_distill.cli import main
from hf_distill.deployment.formats import FORMATS, Format, export_formats
from hf_distill.evaluation import benchmark
from tests.conftest import make_texts

TEXTS = make_texts(6)


def test_rows():
    assert list(FORMATS) == ["onnx-int8", "onnx", "pytorch", "torch-int8"]  # in order of preference
    assert export_formats() == ["onnx", "onnx-int8", "torch-int8"]
    assert {name: format.batch_size for name, format in FORMATS.items() if format.batch_size != 32} == {"onnx-int8": 1}


def test_extras_are_those_of_the_package():
    config = ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    extras = config["options.extras_require"]
    for format in FORMATS.values():
        for package in format.packages:
            assert package in extras[format.extra]
    assert sum(len(format.packages) for format in FORMATS.values()) == 3


def test_a_format_of_ones_own(student, tmp_path, monkeypatch, capsys):
    """One row is enough: the format is written, checked, loaded, batched, measured and offered by the command line."""

    def write(model, inputs, outputs, folder, batches):
        assert len(batches) == len(TEXTS)
        model.save_pretrained(folder)

    monkeypatch.setitem(FORMATS, "mine", Format(write=write, load=FORMATS["torch-int8"].load, batch_size=4))
    export = export_model(student, tmp_path / "mine", "mine", texts=TEXTS)
    assert export.parity.largest_difference < 1e-6
    assert export.parity.agreement == 1
    assert json.loads((export.folder / "export.json").read_text())["format"] == "mine"

    predictor, model = load_predictor(export.folder), load_predictor(student)
    assert predictor.format == "mine"
    np.testing.assert_allclose(predictor.logits(TEXTS), model.logits(TEXTS), atol=1e-6)
    sizes, backend = [], predictor.backend
    predictor.backend = lambda inputs: sizes.append(len(inputs["input_ids"])) or backend(inputs)
    predictor.predict(TEXTS)
    assert sorted(sizes) == [2, 4]

    starts = {"peak_memory": 1, "cold_start": 1.0, "imports_torch": True}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: starts)  # whose processes do not know the row
    measured = benchmark_models({"mine": export.folder}, lengths=[8], texts=TEXTS, threads=1, rounds=1)
    assert measured.models["mine"]["format"] == "mine"
    assert list(measured.models["mine"]["throughput"]["by_batch_size"]) == ["1", "4"]

    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = ["export", str(student), "--format", "mine", "--texts", str(tmp_path / "texts.txt")]
    assert main([*words, "--output", str(tmp_path / "by-command")]) == 0
    assert load_predictor(tmp_path / "by-command", "mine").format == "mine"
    for command in ("export", "serve"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert re.search(r"\bmine\b", capsys.readouterr().out)


def test_a_format_that_is_not_known(exported, tmp_path):
    """As of a later version."""
    folder = shutil.copytree(exported, tmp_path / "later")
    manifest = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(manifest | {"format": "later"}))
    with pytest.raises(ValueError, match="has the unknown format 'later'; known are onnx, onnx-int8, torch-int8"):
        load_predictor(folder)
