"""Every task whose teacher can be stored is compressed."""

import json

import datasets
import pytest

from hf_distill import TASKS, CausalLMArguments, compress
from hf_distill.compression import data
from tests.compression.requests import end_after, record_of
from tests.conftest import make_model
from tests.data.test_chats import make_tokenizer
from tests.tasks.test_chats import write_chats
from tests.tasks.test_every_task import make_tasks

STORED = [name for name, task in TASKS.items() if task.takes_stored_targets]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    make_tasks(folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", STORED)
def test_task(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_key", lambda value: object())  # the same few rows are in all parts
    monkeypatch.chdir(folder)
    end_after(monkeypatch, 1)
    task, options = TASKS[name], json.loads((folder / f"{name}.yaml").read_text())
    files = {f"{part}_file": options["train_file"] for part in ("train", "validation", "test")}
    reading = {option: options[option] for option in task.reading_defaults() if option in options}
    of_teacher = [metric for metric, how in task.fidelity.items() if how.higher_is_better]
    small = compress(
        f"teacher of {name}",
        task.arguments(task=name, **files, **reading),
        tmp_path / "small",
        keep=0.01,
        metric=of_teacher[0] if of_teacher else None,
        formats=["pytorch"],
        threads=1,
    )
    assert (small.folder / "config.json").is_file()
    assert record_of(tmp_path)["students"][0]["parameters"] > 0
    assert "nan" not in (tmp_path / "small" / "compression.md").read_text()


@pytest.mark.long
def test_chats(tmp_path, monkeypatch):
    """Only what the assistant writes is measured, also in the middle of a training."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    end_after(monkeypatch, 1)
    for part, number, seed in (("train", 48, 1), ("test", 60, 2)):
        write_chats(tmp_path / f"{part}.jsonl", number, seed)
    make_model("llama", "causal", num_layers=2).save_pretrained("teacher")
    make_tokenizer().save_pretrained("teacher")
    data = CausalLMArguments(train_file="train.jsonl", test_file="test.jsonl", max_length=38)
    small = compress("teacher", data, tmp_path / "small", keep=0.3, threads=1, formats=["pytorch"])
    assert record_of(tmp_path)["rows"] == {"train": 48, "validation": 24, "test": 36}
    assert small.share > 0.3
