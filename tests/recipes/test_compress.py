"""The recipe that compresses MiniLM, with a tiny teacher."""

import csv
from pathlib import Path

import datasets
import pytest

from recipes.compress import __main__ as recipe
from recipes.quickstart.data import Corpus
from tests.compression.requests import end_after, record_of, write_request


@pytest.mark.long
def test_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    end_after(monkeypatch, 1)
    monkeypatch.setattr(recipe, "fetch", lambda folder: (tmp_path / "minilm", tmp_path / "sentences"))
    monkeypatch.setattr(recipe, "write_data", lambda fetched, folder: write_request(folder, 400, 500))
    monkeypatch.setattr(recipe, "train_teacher", lambda pretrained, data, folder: (data / "teacher").rename(folder))
    monkeypatch.setattr(recipe, "compress", small_formats(recipe.compress))
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "unlabelled.txt").write_text("w5 w6 w7 w8 w9 w5\nw9 w9 w9 w9 w9 w9\n")
    assert recipe.main(["--output", str(tmp_path / "out"), "--keep", "0.7", "--budget", "1h", "--seed", "3"]) == 0
    assert record_of(tmp_path / "out", "small-tpe-3")["rows"]["train"] == 402
    assert "small-tpe-3/compression.md has the front" in capsys.readouterr().out


def small_formats(compress):
    return lambda *arguments, **options: compress(*arguments, **options | {"formats": ("pytorch",), "threads": 1})


def test_data(tmp_path, monkeypatch):
    train = datasets.Dataset.from_dict({"text": ["good", "bad"], "labels": [1, 0]})
    test = datasets.Dataset.from_dict({"text": ["fine"], "labels": [1]})
    unlabelled = datasets.Dataset.from_dict({"text": ["news", "fine", "good"]})
    monkeypatch.setattr(recipe, "fetch", lambda folder: (Path("minilm"), Path("sentences")))
    monkeypatch.setattr(recipe, "load_corpus", lambda folder, num_train, num_test: Corpus(train, test, unlabelled))
    monkeypatch.setattr(recipe, "download", lambda package, folder: Path("tweets"))
    monkeypatch.setattr(recipe, "read_tweets", lambda archive: ["a tweet", "bad", ""])
    recipe.write_data(tmp_path, tmp_path / "data")
    with (tmp_path / "data" / "train.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"text": "good", "label": "positive"},
            {"text": "bad", "label": "negative"},
        ]
    assert (tmp_path / "data" / "unlabelled.txt").read_text().split("\n") == ["a tweet", "news", ""]
