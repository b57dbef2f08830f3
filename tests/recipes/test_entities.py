"""The benchmark of named entities on a tiny model: it runs, continues, and its table is right."""

import json
import re

import datasets
import pytest

from recipes.benchmarks import _trainings, entities
from tests.conftest import make_model, make_text_tokenizer
from tests.tasks.test_token_classification import make_sentences


@pytest.fixture
def tagged():
    blocks = ["\n".join(f"{word}\t{tag}" for word, tag in zip(*own, strict=True)) for own in make_sentences(30, seed=0)]
    return "\n\t\n".join([*blocks, blocks[0]])  # one tweet is there twice


@pytest.fixture
def data(tagged, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(entities, "NUM_TEST", 10)
    lines = [f"{number}\t1.0\tw{number + 5} w20" for number in range(12)]
    (tmp_path / "tweets_GroundTruth.txt").write_text("\n".join(lines))
    return entities.prepare(tagged, tmp_path, tmp_path / "tweets")


def test_data(data):
    tweets = {file: file.read_text().strip().split("\n\n") for file in (data.train, data.test)}
    assert [len(own) for own in tweets.values()] == [20, 10]
    assert len({tweet for own in tweets.values() for tweet in own}) == 30
    assert re.fullmatch(r"(w\d+\t(O|B-PER|I-PER|B-LOC)\n?)+", tweets[data.test][0])
    assert len(data.unlabelled.read_text().splitlines()) == 12


@pytest.mark.long
def test_run(data, tmp_path, monkeypatch, capsys):
    make_model("bert", "mlm", num_layers=6).save_pretrained(tmp_path / "model")
    make_text_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(entities, "READING", {"max_length": 20, "stride": 4})
    ways = [entities.ALONE, entities.TAUGHT, entities.MORE]
    output = tmp_path / "out" / "entities.json"
    benchmark = entities.Benchmark(tmp_path / "model", data, output, epochs=1)
    benchmark.run([0], ways)
    entities.print_table(benchmark.results, [0], ways)
    models = json.loads(output.read_text())["models"]
    assert [*models] == [f"{way} 0" for way in ("teacher", *ways)]
    assert models["teacher 0"]["agreement"] == 1
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 4 + 2

    again = entities.Benchmark(tmp_path / "model", data, output, epochs=1)
    monkeypatch.setattr(_trainings, "train_model", lambda *args: pytest.fail("a finished training is repeated"))
    again.run([0], ways)
    assert again.results == models


def test_table(capsys):
    quality = dict.fromkeys(entities.MEASURES, 0.5)
    ways = [entities.ALONE, entities.TAUGHT]
    results = {f"{way} {seed}": quality | {"f1": 0.4 + seed / 10} for way in ("teacher", *ways) for seed in (0, 1)}
    results[f"{entities.TAUGHT} 1"] = quality | {"f1": 0.6}
    entities.print_table(results, [0, 1], ways)
    lines = capsys.readouterr().out.splitlines()
    assert "| tags alone, 3 layers | 45.0 ± 7.1 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 |" in lines
    assert lines[-1].startswith("| gain by the teacher, seed by seed: tags and teacher | +5.0 ± 7.1 |")
