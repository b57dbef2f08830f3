"""Complete models are loaded, incomplete ones are refused."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_distill.loading import load_config, load_pretrained
from tests.conftest import make_model


def test_a_whole_model(tmp_path):
    model = make_model("bert", "classification")
    model.train().save_pretrained(tmp_path)
    loaded = load_pretrained(AutoModelForSequenceClassification, tmp_path, dtype=torch.float32)
    assert (type(loaded), loaded.training, loaded.dtype) == (type(model), False, torch.float32)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_tied_weights_are_not_missing(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    load_pretrained(AutoModelForMaskedLM, tmp_path)


def test_missing_weights(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    message = r"no weights for .*classifier\.bias, classifier\.weight, so they would be random"
    with pytest.raises(ValueError, match=message):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_only_safetensors(tmp_path):
    model = make_model("bert", "classification")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_code_of_the_model_is_not_run(tmp_path, monkeypatch):
    """Code of a model is never run, and the user is not asked about it."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asks"))
    make_model("bert", "classification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoModelForSequenceClassification": "own.Own", "AutoConfig": "own.C"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_config(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match="neither as a local folder nor on the Hub"):
        load_config(tmp_path)
