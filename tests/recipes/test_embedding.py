"""The recipe with a tiny teacher and few texts, and its config file."""

import json
from pathlib import Path

import datasets
import pytest

from hf_distill.cli import main
from recipes import embedding
from recipes.benchmarks import embedding as benchmark
from recipes.embedding import __main__ as recipe
from recipes.embedding import data
from tests.conftest import make_texts
from tests.embedding.models import encode, library, make_embedding_model

FOLDER = Path(embedding.__file__).parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_command(here, monkeypatch, capsys):
    teacher = make_embedding_model(num_layers=6)
    texts = make_texts(60)
    monkeypatch.setattr(recipe, "load_teacher", lambda folder: teacher)
    monkeypatch.setattr(recipe, "load_texts", lambda folder, number: data.Texts(texts[number:], texts[:number]))
    narrow = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16}
    monkeypatch.setitem(
        recipe.STUDENTS,
        "half the width",
        lambda own, fitted: recipe.fit_dense(recipe.make_student(own, **narrow), own, fitted),
    )
    words = "--output out --held-out 20 --epochs 2 --batch-size 8 --learning-rate 1e-3"
    assert recipe.main(words.split()) == 0
    results = json.loads((here / "out" / "results.json").read_text())
    assert results.keys() == recipe.STUDENTS.keys()
    for name, own in results.items():
        student = library.SentenceTransformer(own["folder"], device="cpu")
        vectors, expected = encode(student, texts[:20]), encode(teacher, texts[:20])
        cosine = (vectors * expected).sum(1).mean().item()
        assert own["trained"]["cosine_to_teacher"] == pytest.approx(cosine, abs=1e-5)
        assert own["trained"]["cosine_to_teacher"] > own["untrained"]["cosine_to_teacher"]
        assert "documents once with the teacher" in Path(own["folder"], "README.md").read_text(), name
    assert "| 3 layers, untrained |" in capsys.readouterr().out


def test_benchmark(here, monkeypatch, capsys):
    """Ours and sentence-transformers train the same student; a second run trains nothing again."""
    teacher, texts = make_embedding_model(num_layers=6), make_texts(60)
    monkeypatch.setattr(benchmark, "load_teacher", lambda folder: teacher)
    monkeypatch.setattr(benchmark, "load_texts", lambda folder, number: data.Texts(texts[number:], texts[:number]))
    monkeypatch.setattr("sys.argv", ["embedding", "--output", "out/b.json", "--held-out", "20", "--minutes", "0.01"])
    assert benchmark.main() == 0
    results = json.loads((here / "out" / "b.json").read_text())["results"]
    assert results.keys() == {benchmark.UNTRAINED, *benchmark.OURS, benchmark.PEER}
    for name, own in results.items():
        assert (own["0"]["steps"] > 0) == (name != benchmark.UNTRAINED)
        assert own["0"]["cosine_to_teacher"] >= results[benchmark.UNTRAINED]["0"]["cosine_to_teacher"]
    monkeypatch.setattr(benchmark, "_train", None)
    assert benchmark.main() == 0
    assert benchmark.PEER in capsys.readouterr().out


def test_config(here):
    make_embedding_model().save_pretrained("teacher")
    (here / "texts.txt").write_text("\n".join(make_texts(40)))
    assert main(["train", str(FOLDER / "config.yaml"), str(FOLDER / "smoke.yaml")]) == 0
    results = json.loads((here / "student" / "eval_results.json").read_text())
    assert 0 < results["eval_loss_embedding"] < 1
