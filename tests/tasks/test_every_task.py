"""What holds for every task: two processes give the model that one gives, and models are reported."""

import json
from pathlib import Path

import datasets
import pytest
from safetensors.torch import load_file

from hf_distill import write_report
from hf_distill.evaluation import benchmark
from hf_distill.tasks.registry import TASKS
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.embedding.models import make_embedding_model
from tests.images import make_processor, make_vit, write_images
from tests.processes import run_on_two_processes, run_python
from tests.question_answering import make_question_rows, make_question_tokenizer, write_squad
from tests.sounds import make_extractor, make_wav2vec2, write_sounds
from tests.speech import make_speech_processor, make_whisper, write_recordings

SCRIPT = Path(__file__).with_name("rows_on_processes.py")
OPTIONS = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 2,
    "learning_rate": 0.01,
    "optim": "sgd",
    "alpha_cos": 0.0,
}
TEXTS = make_texts(16, seed=1, longest=10)
LABELS = ["one", "other"] * 8


def write_lines(file, columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    file.write_text("\n".join(map(json.dumps, rows)))


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def classifier():
    names = {"id2label": {0: "one", 1: "other"}, "label2id": {"one": 0, "other": 1}}
    return make_model("bert", "classification", num_labels=2, **names)


def make_tasks(folder):
    """Writes data and teacher of each task. Returns the options that are its own."""
    tokenizer, pair_tokenizer = make_text_tokenizer(), make_pair_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    tables = {
        "texts": {"text": TEXTS, "label": LABELS},
        "pairs": {"text": TEXTS, "text_pair": TEXTS[::-1], "label": LABELS},
        "rankings": {"query": TEXTS, "positive": [[text] for text in TEXTS[::-1]], "negative": [["w5"], ["w6"]] * 8},
        "tagged": {
            "tokens": [text.split() for text in TEXTS],
            "ner_tags": [["O"] * len(text.split()) for text in TEXTS],
        },
        "pairs-with-scores": {"text": TEXTS, "text_pair": TEXTS[::-1], "score": [*range(16)]},
        "targets": {"source": TEXTS, "target": [text.split()[0] for text in TEXTS]},
    }
    tables["tagged"]["ner_tags"][0][0] = "B-PER"
    for name, columns in tables.items():
        write_lines(folder / f"{name}.jsonl", columns)
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    write_squad(folder / "questions.json", make_question_rows(12, longest=6))
    write_images(folder / "images", 16)
    write_sounds(folder / "sounds", 16)
    write_recordings(folder / "speech", ["ab", "c", "bc", "a"] * 4)
    tags = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}
    teachers = {
        "text-classification": (classifier(), tokenizer, "texts.jsonl", {}),
        "text-pair-classification": (classifier(), pair_tokenizer, "pairs.jsonl", {}),
        "reranking": (make_model("bert", "classification", num_labels=1), pair_tokenizer, "rankings.jsonl", {}),
        "token-classification": (
            make_model("bert", "token_classification", num_labels=2, **tags),
            tokenizer,
            "tagged.jsonl",
            {},
        ),
        "question-answering": (
            make_model("bert", "question_answering"),
            make_question_tokenizer(),
            "questions.json",
            {"stride": 4, "unanswerable": True},
        ),
        "fill-mask": (make_model("bert", "mlm"), tokenizer, "texts.txt", {}),
        "causal-lm": (make_model("gpt2", "causal"), tokenizer, "texts.txt", {}),
        "image-classification": (make_vit(), make_processor(), "images", {}),
        "audio-classification": (make_wav2vec2(), make_extractor(), "sounds", {"max_seconds": 0.1}),
        "speech-recognition": (make_whisper(), make_speech_processor(), "speech/data.jsonl", {"max_target_length": 8}),
        "summarization": (make_model("bart", "seq2seq"), tokenizer, "targets.jsonl", {"max_target_length": 6}),
        "translation": (make_model("bart", "seq2seq"), tokenizer, "targets.jsonl", {"max_target_length": 6}),
    }
    embedder = make_embedding_model()
    teachers["embedding"] = (embedder, embedder.tokenizer, "pairs-with-scores.jsonl", {})
    for task, (model, processor, data, own) in teachers.items():
        save(model, processor, folder / f"teacher of {task}")
        options = {"task": task, "teacher_model_name_or_path": f"teacher of {task}", "train_file": data} | OPTIONS | own
        (folder / f"{task}.yaml").write_text(json.dumps(options))  # JSON is YAML
    return [*teachers]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data and the teacher of each task."""
    folder = tmp_path_factory.mktemp("tasks")
    assert {*make_tasks(folder)} == {*TASKS}
    return folder


@pytest.mark.long
def test_two_processes(folder):
    own = {"HF_DATASETS_CACHE": str(folder / "cache")}
    one = run_python([SCRIPT, "one", 4, *TASKS], own, folder)
    assert one.returncode == 0, one.stderr[-3000:]
    two = run_on_two_processes([SCRIPT, "two", 2, *TASKS], own, folder)
    assert two.returncode == 0, two.stderr[-3000:]
    for task in TASKS:
        weights, expected = (load_file(folder / run / task / "model.safetensors") for run in ("two", "one"))
        start = load_file(folder / f"teacher of {task}" / "model.safetensors")
        assert weights.keys() == expected.keys(), task
        if task == "fill-mask":  # each process draws its own masks
            continue
        distances = {name: (own - expected[name]).abs().max().item() for name, own in weights.items()}
        assert max(distances.values()) < 1e-6, (task, distances)
        assert any(not own.equal(start[name]) for name, own in weights.items() if name in start), task


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_report(folder, tmp_path, monkeypatch, task):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    sizes = {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: sizes)
    for name, value in {"BURST": 1, "BATCH_SIZES": (2,)}.items():
        monkeypatch.setattr(benchmark, name, value)
    options = json.loads((folder / f"{task}.yaml").read_text())
    data, model = folder / options["train_file"], folder / f"teacher of {task}"
    reading = {name: options[name] for name in TASKS[task].reading_defaults() if name in options}
    report = write_report(model, model, data, tmp_path, task=task, threads=1, rounds=1, **reading)
    assert report["task"] == task
    assert report["models"]["student"]["quality"].keys() & TASKS[task].quality.keys()
    page = (tmp_path / "report.md").read_text()
    assert any(metric.title in page for metric in TASKS[task].quality.values())
