"""Every task whose teacher can be stored is compressed."""

import json

import datasets
import pytest

from hf_distill import TASKS, CausalLMArguments, EmbeddingArguments, EmbeddingModel, compress
from hf_distill.compression import data, search
from tests.compression.requests import end_after, record_of
from tests.conftest import make_model, make_texts
from tests.data.test_chats import make_tokenizer
from tests.embedding.models import make_embedding_model
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


def test_narrow_embedding_models_have_vectors_of_the_teachers_width(tmp_path, monkeypatch):
    """The second student is cut from the first one, which has the Dense module already."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "START", (((1.0, 1.0, 0.5), 2), ((0.5, 1.0, 0.25), 2)))
    end_after(monkeypatch, 2)
    for stops in ("_is_superfluous", "_is_beaten"):  # they depend on measured times
        monkeypatch.setattr(search.Search, stops, lambda *given: False)
    teacher = make_embedding_model(num_layers=2, hidden_size=32, num_attention_heads=4)
    teacher.save_pretrained(tmp_path / "teacher")
    texts = list(dict.fromkeys(make_texts(300, longest=12)))
    for part, own in (("train", texts[:180]), ("test", texts[180:])):
        (tmp_path / f"{part}.txt").write_text("\n".join(own) + "\n")
    data = EmbeddingArguments(train_file=str(tmp_path / "train.txt"), test_file=str(tmp_path / "test.txt"))
    options = {"keep": 0.01, "metric": "cosine_to_teacher", "formats": ["pytorch"], "threads": 1}
    compress(tmp_path / "teacher", data, tmp_path / "small", **options)
    students = record_of(tmp_path)["students"]
    assert [(own["recipe"]["sizes"]["num_attention_heads"], own["source"]) for own in students] == [(2, None), (1, 0)]
    for own in students:
        student = EmbeddingModel.from_pretrained(tmp_path / "small" / "search" / "students" / str(own["number"]))
        assert student.config.hidden_size == 8 * own["recipe"]["sizes"]["num_attention_heads"]
        assert student.embedding_width == teacher.embedding_width
        assert [type(module).__name__ for module in student.head].count("Dense") == 1


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
    assert record_of(tmp_path)["rows"] == {"train": 48, "variants": 0, "validation": 24, "test": 36}
    assert small.share > 0.3
