"""The recipe's smoke run: handwritten digits of scikit-learn, on tiny models."""

import json
from pathlib import Path

import datasets
import torch
import yaml
from transformers import ViTImageProcessorPil

from hf_distill import load_predictor
from hf_distill.cli import main
from recipes.image import smoke_data
from tests.images import make_vit

RECIPE = Path(smoke_data.__file__).parent
CONFIG, SMOKE = RECIPE / "config.yaml", RECIPE / "smoke.yaml"
SHORTER = ["--disable_tqdm", "true", "--num_train_epochs", "2"]


def save_pretrained(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 8, "patch_size": 2, "initializer_range": 0.1}
    make_vit(4, **sizes).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)


def results(folder):
    return json.loads((Path(folder) / "test_results.json").read_text())


def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    smoke_data.main([])
    save_pretrained("pretrained")
    configs = ["train", str(CONFIG), str(SMOKE), *SHORTER]
    as_teacher = {"model_name_or_path": "pretrained", "output_dir": "out/teacher"}
    without = ["--teacher_model_name_or_path", "null", "--num_layers", "null", "--alpha_kl", "0", "--alpha_task", "1"]
    options = [word for name, value in as_teacher.items() for word in (f"--{name}", value)]
    assert main([*configs, *without, *options]) == 0
    assert main(configs) == 0
    assert results("out/teacher")["test_accuracy"] > 0.4
    assert results("out/student")["test_accuracy"] > 0.5
    assert results("out/student")["test_top_5_accuracy"] > 0.9
    file = min(Path("test", "zero").glob("*.png"))
    assert load_predictor("out/student").predict([file])[0]["label"] in smoke_data.NAMES


def test_the_digits(tmp_path):
    smoke_data.main([str(tmp_path)])
    assert len(list(tmp_path.rglob("*.png"))) == 1797
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == sorted(smoke_data.NAMES)


def test_the_smoke_run_changes_models_data_and_sizes_only():
    changed = yaml.safe_load(SMOKE.read_text()).keys()
    assert {"learning_rate", "num_train_epochs", "use_cpu", "bf16", "train_file"} <= changed
    assert not {"alpha_kl", "alpha_task", "alpha_cos", "metric_for_best_model", "eval_strategy"} & changed
