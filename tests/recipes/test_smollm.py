"""The recipe with tiny models and few sentences, and its config file."""

import json
from pathlib import Path

import datasets
import pytest
import torch

from hf_distill import CausalLMArguments, DistillationTrainingArguments, parse_config
from recipes import smollm
from recipes.smollm import __main__ as recipe
from recipes.smollm import data
from tests.conftest import make_model, make_texts
from tests.data.test_chats import make_tokenizer

FOLDER = Path(smollm.__file__).parent


def save_teacher(folder):
    make_model("llama", "causal", num_layers=6, initializer_range=0.3).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.long
def test_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipe, "fetch_teacher", lambda folder: save_teacher(tmp_path / "teacher"))
    monkeypatch.setattr(recipe, "MAX_LENGTH", 20)
    monkeypatch.setattr(recipe, "NUM_PROMPTS", 1)
    monkeypatch.setattr(recipe, "PROMPT_WORDS", 3)
    cuts = [{"num_layers": 3, "layers": "influence"}, {"intermediate_size": 8, "width": "activation"}]
    monkeypatch.setattr(recipe, "STUDENTS", dict(zip(recipe.STUDENTS, cuts, strict=True)))

    def write_texts(fetched, folder):
        folder.mkdir()
        files = folder / "train.txt", folder / "test.txt"
        for file, number in zip(files, (80, 12), strict=True):
            file.write_text("\n".join(make_texts(number, seed=number)))
        return files

    monkeypatch.setattr(recipe, "write_texts", write_texts)
    assert recipe.main(["--output", str(tmp_path / "out"), "--steps", "3", "--seeds", "0", "1"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"teacher", *recipe.STUDENTS}
    for name in recipe.STUDENTS:
        own = results[name]
        assert [len(own[way]) for way in recipe.WAYS] == [2, 2, 2]
        assert own["teacher and labels"] != own["labels"] != own["teacher"]
        assert 0 < own["draft"]["acceptance_rate"] < 1
        student, _ = recipe.load(tmp_path / "out" / name.replace(" ", "-") / "teacher-and-labels-0")
        assert own["parameters"] == student.num_parameters()
    shown = capsys.readouterr().out
    assert "| 15 layers, teacher and labels | " in shown
    assert shown.count(" ± ") == 12


def test_held_out_sentences(tmp_path, monkeypatch):
    sentences = tmp_path / "sentences"
    sentences.mkdir()
    for number, name in enumerate(data.SENTENCE_FILES):
        lines = [f"{line}\t1.0\tsentence {number} {line}" for line in range(100)]
        (sentences / name).write_text("\n".join(lines))
    monkeypatch.setattr(data, "fetch", lambda folder: (None, sentences))
    train, test = (file.read_text().splitlines() for file in data.write_texts(tmp_path, tmp_path / "out"))
    assert len(test) == data.NUM_HELD_OUT
    assert len({*train, *test}) == len(train) + len(test) == 100 * len(data.SENTENCE_FILES)


def test_calibration_has_no_padding():
    batches = recipe.batches_of(make_texts(300), make_tokenizer())
    assert {own["input_ids"].shape[1] for own in batches} == {recipe.MAX_LENGTH}
    assert all(torch.equal(own["attention_mask"], torch.ones_like(own["input_ids"])) for own in batches)


def test_config():
    args, training = parse_config(
        [CausalLMArguments, DistillationTrainingArguments],
        ["--config", str(FOLDER / "config.yaml"), "--use_cpu", "--bf16", "false"],
    )
    assert training.teacher_model_name_or_path == "HuggingFaceTB/SmolLM2-1.7B-Instruct"
    assert args.assistant_only_loss
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 128
