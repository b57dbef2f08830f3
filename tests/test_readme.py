"""Examples of the README, run as they are written, on tiny models and texts."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

import hf_distill
from hf_distill.cli import main
from tests.conftest import make_model, make_rows, make_text_tokenizer
from tests.tasks.test_text_classification import make_reviews, write_reviews

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")


def section(heading):
    return re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##)", README, flags=re.DOTALL | re.MULTILINE).group(1)


def blocks(heading, language):
    return re.findall(rf"```{language}\n(.*?)```", section(heading), flags=re.DOTALL)


def commands(heading):
    joined = section(heading).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("    hf-distill ")]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_stored_targets():
    (example,) = blocks("The teacher's outputs, computed once", "python")
    given = {name: getattr(hf_distill, name) for name in hf_distill.__all__}
    given |= {"teacher": make_model("bert", "classification"), "tokenizer": make_text_tokenizer()}
    given["train"] = Dataset.from_list(make_rows("classification"))
    exec(example, given)
    assert given["trainer"].train().global_step == 6


def test_text_classification_without_python():
    make_model("bert", "classification", id2label={0: "neg", 1: "pos"}).save_pretrained("outputs/teacher")
    make_text_tokenizer().save_pretrained("outputs/teacher")
    for name in ("reviews.csv", "test.csv"):
        write_reviews(Path(name), make_reviews(8, seed=0), header=("review", "sentiment"))
    heading = "Text classification without Python"
    (config,) = blocks(heading, "yaml")
    Path("config.yaml").write_text(config.replace("128", "32"))  # the tiny model takes 38 tokens
    train, evaluate = commands(heading)
    assert main([*train, "--use_cpu", "--report_to", "none"]) == 0
    assert main(evaluate) == 0
    assert Path("outputs/report/evaluation.json").exists()
