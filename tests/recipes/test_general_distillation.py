"""The benchmark of general distillation on a tiny teacher: it runs, and its table has its figures."""

import json
import statistics

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForMaskedLM

from recipes.benchmarks import distil_from_scratch, general_distillation
from recipes.benchmarks.general_distillation import NOTHING, RELATIONS, THREE_LOSSES, Benchmark
from recipes.quickstart.data import Corpus
from tests.conftest import make_model, make_text_tokenizer, make_texts

SMALL = ["--relation_heads", "4", "--block_size", "32", "--validation_documents", "8"]
SMALL += ["--per_device_train_batch_size", "8"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(general_distillation, "FINE_TUNING_STEPS", 2)
    monkeypatch.setattr(general_distillation, "TIMED_STEPS", 1)
    monkeypatch.setattr(general_distillation, "UNTIMED_STEPS", 1)
    make_model("bert", "mlm").base_model.save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "corpus.txt").write_text("\n".join(make_texts(120)))
    labelled = Dataset.from_dict({"text": make_texts(60, longest=12), "labels": [row % 2 for row in range(60)]})
    train, test = labelled.select(range(40)), labelled.select(range(40, 60))
    corpus = Corpus(train=train, test=test, unlabelled=test.remove_columns("labels"))

    def run(**others):
        options = {"steps": 3, "head_steps": 2, "seeds": [0, 1], "labels": [40], "more": SMALL}
        return general_distillation.run(
            tmp_path / "teacher", tmp_path / "corpus.txt", corpus, tmp_path / "general.json", **{**options, **others}
        )

    return run


@pytest.mark.long
def test_general_distillation(run, tmp_path, capsys, monkeypatch):
    figures = run()
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "general.json").read_text())["figures"] == figures
    for way, steps in {RELATIONS: 3, THREE_LOSSES: figures["steps of the three losses"]["steps"], NOTHING: 0}.items():
        assert [figures[f"seed {seed}, {way}"]["steps"] for seed in (0, 1)] == [steps, steps]
        accuracies = [100 * figures[f"seed {seed}, {way}, 40 labels"]["accuracy"] for seed in (0, 1)]
        (row,) = [line for line in printed.splitlines() if line.startswith(f"| {way} |")]
        assert f"| {statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f} |" in row
    assert figures["teacher's new head"]["perplexity"] < figures["teacher's new head"]["before"]

    # Only the head of the teacher was trained, and all students began with the same weights.
    teacher, original = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / folder) for folder in ("general/teacher", "teacher")
    )
    for name, weight in original.base_model.state_dict().items():
        assert torch.equal(teacher.base_model.state_dict()[name], weight)
    made = [AutoModel.from_pretrained(tmp_path / "general" / f"seed 0, {name}") for name in ("relations", "not", "the")]
    untrained = "encoder.layer.2.output.dense.weight"  # relations do not read it
    by_relations, untouched, by_three_losses = (model.state_dict()[untrained] for model in made)
    assert torch.equal(by_relations, untouched)
    assert not torch.equal(by_three_losses, untouched)

    # A second run trains nothing again.
    monkeypatch.setattr(general_distillation, "train_quietly", None)
    monkeypatch.setattr(general_distillation, "fine_tune", None)
    assert run() == figures


def test_cut(run, tmp_path):
    """Both students begin with the teacher's layers."""
    figures = run(is_cut=True, seeds=[0], more=[*SMALL, "--learning_rate", "0"])
    assert figures[f"seed 0, {RELATIONS}"]["steps"] == 3
    teacher = AutoModel.from_pretrained(tmp_path / "teacher")
    for name in ("relations", "the", "not"):
        student = AutoModel.from_pretrained(tmp_path / "general" / f"seed 0, {name}")
        assert student.config.num_hidden_layers == 2
        own, other = student.encoder.layer[1], teacher.encoder.layer[2]
        assert torch.equal(own.output.dense.weight, other.output.dense.weight)


def test_texts_that_are_tested_on_are_left_out(tmp_path):
    for name in general_distillation.SENTENCE_FILES:
        (tmp_path / name).write_text("1\t2.0\tgood\n2\t-1.0\ttested\n")
    general_distillation.write_corpus(tmp_path / "made" / "corpus.txt", tmp_path, ["a tweet", ""], ["tested"])
    assert sorted((tmp_path / "made" / "corpus.txt").read_text().splitlines()) == ["a tweet", "good"]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_all_trainings_run_on_the_gpu_if_there_is_one(has_gpu, tmp_path, monkeypatch):
    """Although the miniatures of the recipes have use_cpu: true."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    recipes = general_distillation.minilm, general_distillation.three_losses
    options = {"model_folder": tmp_path, "text": tmp_path, "steps": 1, "more": [], "is_cut": False}
    benchmark = Benchmark.__new__(Benchmark)
    vars(benchmark).update(options)
    assert [benchmark.parsed(recipe, 0, tmp_path)[1].use_cpu for recipe in recipes] == [not has_gpu] * 2
    words = distil_from_scratch.recipe_options(tmp_path, tmp_path, tmp_path, 1, 0)
    assert words[words.index("--use_cpu") + 1] == str(not has_gpu)
