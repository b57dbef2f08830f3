"""The README's examples, run as they are written on tiny models and texts."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hf_distill.cli import main
from hf_distill.evaluation import benchmark
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.tasks.test_text_classification import make_reviews, write_reviews

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")


def section(heading):
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## )", README, flags=re.DOTALL | re.MULTILINE).group(1)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_in_python(hub, monkeypatch):
    """Only the names of the model and of the data set are local; the push goes to a Hub on this machine."""
    (example,) = re.findall(r"```python\n(.*?)```", section("In Python"), flags=re.DOTALL)
    make_model("bert", "classification").save_pretrained("teacher")
    make_text_tokenizer().save_pretrained("teacher")
    rows = Dataset.from_dict({"text": make_texts(8), "label": [0, 1] * 4})
    monkeypatch.setattr(datasets, "load_dataset", {"stanfordnlp/imdb": DatasetDict(train=rows, test=rows)}.get)
    exec(example.replace("textattack/bert-base-uncased-imdb", "teacher"), {})
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= set(hub.files("tester/student"))


def test_from_the_shell(monkeypatch):
    """Training, export and report; tests/serving has the service, and tests/evaluation the cold starts."""
    start = {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: start)
    lines = section("From the shell").replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("    hf-distill ")]
    assert [command[0] for command in commands] == ["train", "train", "export", "report", "serve"]
    make_model("bert", "classification", id2label={0: "neg", 1: "pos"}).save_pretrained("bert")
    make_text_tokenizer().save_pretrained("bert")
    for name in ("reviews.csv", "test.csv"):
        write_reviews(Path(name), make_reviews(8, seed=0))
    tiny = ["--max_length", "32", "--use_cpu"]  # the tiny model has 38 positions
    short = {"train": tiny, "report": ["--lengths", "16", "--rounds", "1", "--threads", "1"]}
    for command in commands[:-1]:
        words = [word.replace("google-bert/bert-base-uncased", "bert") for word in command]
        assert main(words + short.get(words[0], [])) == 0
    assert Path("outputs/student-int8/model.onnx").exists()
    assert Path("outputs/report/report.md").exists()


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    local = [link for link in links if not link.startswith("https://")]
    assert len(local) > 5
    root = Path(__file__).parents[1]
    assert [link for link in local if not (root / link).exists()] == []
