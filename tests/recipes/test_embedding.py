"""The recipe with a tiny teacher and few texts, and its config file."""

import json
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from scipy.stats import spearmanr

from hf_distill.cli import main
from recipes import embedding
from recipes.benchmarks import embedding as benchmark
from recipes.benchmarks import embedding_speed
from recipes.embedding import __main__ as recipe
from recipes.embedding import data, judged
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
    monkeypatch.setattr(recipe, "load_judged", lambda folder: judged.Judged(texts[:3], [(0, 1), (0, 2)], [0.1, 0.9]))
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
        cosine = (encode(student, texts[20:]) * encode(teacher, texts[20:])).sum(1).mean().item()
        assert own["training_texts"]["cosine_to_teacher"] == pytest.approx(cosine, abs=1e-5)
        assert "documents once with the teacher" in Path(own["folder"], "README.md").read_text(), name
    assert "| 3 layers, untrained |" in capsys.readouterr().out


def test_similarities_that_people_see(here, monkeypatch, capsys):
    """The matrix of judgements is read at the pairs' places, and the correlation is that of the cosines."""
    texts = ["w5 w6", "w6 w7", "w5 w6 w8"]
    with zipfile.ZipFile("gensim.whl", "w") as wheel:
        wheel.writestr(f"{judged.FOLDER}/lee.cor", "\n".join(texts))
        wheel.writestr(f"{judged.FOLDER}/similarities0-1.txt", "1\t0.2\t0.9\n0\t1\t0.4\n0\t0\t1\n")
    monkeypatch.setattr(judged, "download", lambda package, folder: Path("gensim.whl"))
    loaded = judged.load_judged(here)
    assert loaded == judged.Judged(texts, [(0, 1), (0, 2), (1, 2)], [0.2, 0.9, 0.4])
    model = make_embedding_model()
    vectors = encode(model, texts)
    cosines = [(vectors[first] * vectors[second]).sum().item() for first, second in loaded.pairs]
    expected = spearmanr(cosines, loaded.scores).statistic
    assert judged.spearman(model, loaded) == pytest.approx(expected)
    monkeypatch.setattr(judged, "load_teacher", lambda folder: model)
    model.save_pretrained("student")
    assert judged.main(["student"]) == 0
    assert capsys.readouterr().out == f"{expected:.3f}  all-MiniLM-L6-v2\n{expected:.3f}  student\n"


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


@pytest.mark.long
def test_speed(here, monkeypatch, capsys):
    teacher, texts = make_embedding_model(num_layers=2), make_texts(12)
    monkeypatch.setattr(embedding_speed, "load_teacher", lambda folder: teacher)
    monkeypatch.setattr(embedding_speed, "load_texts", lambda folder: data.Texts([], texts))
    monkeypatch.setattr(embedding_speed, "NUM_LAYERS", 1)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # so that what the benchmark sets is undone
    monkeypatch.setitem(sys.modules, "fastembed", None)  # as if it is not installed
    monkeypatch.setattr("sys.argv", ["embedding_speed", "--output", "out/s.json", "--texts", "8", "--rounds", "2"])
    assert embedding_speed.main() == 0
    models = json.loads((here / "out" / "s.json").read_text())["models"]
    ways = [embedding_speed.PYTORCH, *(f"`{format}`" for format in embedding_speed.FORMATS)]
    assert [*models] == [
        f"{name}, {way}" for name in (embedding_speed.TEACHER, embedding_speed.STUDENT) for way in ways
    ]
    for name, own in models.items():
        measured = [own["milliseconds"], *own["texts_per_second"].values()]
        assert len(measured) == (2 if "int8" in name else 1 + len(embedding_speed.BATCH_SIZES))
        assert all(len(of_rounds) == 2 and min(of_rounds) > 0 for of_rounds in measured)
    differences = [own["largest_difference"] for own in models.values() if "largest_difference" in own]
    assert len(differences) == 2
    assert differences[0] < 1e-5 < differences[1]
    printed = capsys.readouterr()
    (cells,) = [line.split("|") for line in printed.out.splitlines() if f"| {embedding_speed.BASELINE} |" in line]
    assert [cells[3].strip(), cells[6].strip()] == ["1.00", "1.00"]
    assert f"fastembed is not installed: {embedding_speed.INSTALL}" in printed.err


def test_fastembed_computes_the_vectors_of_the_teacher(tmp_path):
    pytest.importorskip("fastembed")
    teacher, texts = make_embedding_model(num_layers=1), make_texts(12)
    model, expected = embedding_speed.in_fastembed(teacher, tmp_path, threads=1), embedding_speed.in_pytorch(teacher)
    assert np.abs(model.embed(texts, 4) - expected.embed(texts, 4)).max() < 1e-6


def test_config(here):
    make_embedding_model().save_pretrained("teacher")
    (here / "texts.txt").write_text("\n".join(make_texts(40)))
    assert main(["train", str(FOLDER / "config.yaml"), str(FOLDER / "smoke.yaml")]) == 0
    results = json.loads((here / "student" / "eval_results.json").read_text())
    assert 0 < results["eval_loss_embedding"] < 1
