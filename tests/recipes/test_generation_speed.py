"""The benchmark of language models with quantized weights, on a tiny model."""

import json

import pytest
import torch

from recipes.benchmarks import generation_speed as benchmark
from tests.conftest import make_model, make_text_tokenizer, make_texts

pytest.importorskip("torchao")


@pytest.fixture
def folder(tmp_path):
    tokenizer = make_text_tokenizer()
    make_model("llama", "causal", num_layers=2).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path


def test_speed_size_and_agreement(folder, monkeypatch, capsys):
    (folder / "test.txt").write_text("\n".join(make_texts(8, seed=0, longest=20)))
    monkeypatch.setattr(benchmark, "write_texts", lambda fetched, output: (None, folder / "test.txt"))
    monkeypatch.setattr(benchmark, "fetch_teacher", lambda fetched: folder / "tiny")
    monkeypatch.setattr(benchmark, "PROMPT_TOKENS", 4)
    output, student = folder / "out.json", str(folder / "tiny")
    words = ["generation_speed", "--students", student, "--tokens", "3", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--output", str(output)])
    assert benchmark.main() == 0
    results = json.loads(output.read_text())["results"]
    assert list(results) == ["the teacher", student]
    found = results[student]
    assert found["fp32"]["agreement"] == 1.0
    assert found["bf16"]["megabytes"] == pytest.approx(found["fp32"]["megabytes"] / 2, rel=0.01)
    assert found["int8 weights"]["megabytes"] < found["fp32"]["megabytes"]
    assert found["int8 weights"]["agreement"] > 0.8
    assert capsys.readouterr().out.count(f"| {student} | ") == len(found)


def test_writes_as_many_tokens_as_asked_for(folder):
    model = benchmark.load(folder / "tiny", {"dtype": torch.float32}, torch.device("cpu"))
    written = []
    generate = model.generate
    model.generate = lambda *inputs, **options: written.append(generate(*inputs, **options))
    assert benchmark.write(model, torch.tensor([[5, 6, 7]]), 4) > 0
    assert written[0].shape == (1, 7)


def test_tied_embeddings_count_once(folder):
    model = make_model("llama", "causal", num_layers=2, tie_word_embeddings=True)
    assert benchmark.megabytes(model) == pytest.approx(sum(own.nbytes for own in model.parameters()) / 1e6, rel=0.01)
