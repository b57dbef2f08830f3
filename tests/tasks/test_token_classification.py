"""Token classification from data to service, on tiny models: the same predictions at every stop."""

import json
import random

import datasets
import pytest
from transformers import AutoModelForTokenClassification, pipeline

from hf_distill import (
    DistillationTrainingArguments,
    TokenClassificationArguments,
    evaluate_model,
    export_model,
    load_predictor,
    train_model,
    write_report,
)
from hf_distill.data.tagged_words import load_tagged_words
from hf_distill.evaluation import benchmark
from hf_distill.serving.worker import answer
from hf_distill.tasks.registry import TASKS
from tests.conftest import make_model, make_text_tokenizer

NAMES = ["O", "B-LOC", "B-PER", "I-PER"]
KINDS = {**dict.fromkeys(range(5, 15), "B-PER"), **dict.fromkeys(range(15, 25), "B-LOC")}


def make_sentences(num_rows, seed):
    """Words from w5 are persons, whose names may go on with w25 to w34; words from w15 are places."""
    generator = random.Random(seed)
    sentences = []
    for _ in range(num_rows):
        words = generator.choices(range(5, 61), weights=[3] * 30 + [1] * 26, k=generator.randint(1, 50))
        tags: list[str] = []
        for word in words:
            goes_on = 25 <= word < 35 and tags and tags[-1] != "O" and tags[-1] != "B-LOC"
            tags.append("I-PER" if goes_on else KINDS.get(word, "O"))
        sentences.append(([f"w{word}" for word in words], tags))
    return sentences


def write_conll(file, sentences):
    lines = ["\n".join(f"{word} {tag}" for word, tag in zip(*sentence, strict=True)) for sentence in sentences]
    file.write_text("\n\n".join(lines))
    return str(file)


def write_words(file, sentences):
    file.write_text("\n".join(json.dumps({"tokens": words}) for words, _ in sentences))
    return str(file)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def save_data(folder):
    make_model("bert", "mlm").save_pretrained(folder / "pretrained")
    make_text_tokenizer().save_pretrained(folder / "pretrained")
    write_conll(folder / "train.conll", make_sentences(64, seed=0))
    write_conll(folder / "test.conll", make_sentences(24, seed=1))
    return folder


def train(folder, output="out", task=None, **training):
    task = {"train_file": str(folder / "train.conll"), "max_length": 20, "stride": 6, **(task or {})}
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "num_train_epochs": 3,
        "save_strategy": "no",
    }
    training = DistillationTrainingArguments(str(folder / output), **{**options, **training})
    return train_model(TokenClassificationArguments(**task), training)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`teacher`, fine-tuned; `student`, distilled; and the student in ONNX and int8."""
    folder = save_data(tmp_path_factory.mktemp("tagging"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        own = {"model_name_or_path": str(folder / "pretrained"), "test_file": str(folder / "test.conll")}
        train(folder, "teacher", own)
        train(
            folder,
            "student",
            {"test_file": str(folder / "test.conll"), "num_layers": 1},
            teacher_model_name_or_path=str(folder / "teacher"),
        )
    texts = [" ".join(words) for words, _ in make_sentences(12, seed=2)]
    for format in ("onnx", "onnx-int8"):
        export_model(folder / "student", folder / format, format, texts=texts, min_agreement=0.5)
    return folder


def test_from_data_to_service(folder):
    """Every format gives every word the tag that the evaluation during training saw, in windows of 20 tokens."""
    trained = {name: json.loads((folder / name / "test_results.json").read_text()) for name in ("teacher", "student")}
    assert trained["teacher"]["test_f1"] > 0.8
    test = str(folder / "test.conll")
    task = TASKS["token-classification"]
    rows, names = load_tagged_words(test)
    assert names == NAMES
    assert max(len(words) for words in rows["starts"]) > 18
    predictions = {}
    for name, like in {"teacher": "teacher", "student": "student", "onnx": "student", "onnx-int8": None}.items():
        measured = evaluate_model(folder / name, test, teacher=folder / "teacher")
        predictor = load_predictor(folder / name)
        assert (predictor.encoder.max_length, predictor.encoder.stride, predictor.reader.words) == (20, 6, "spaces")
        reading = {**task.reading_defaults(), "stride": 6}
        predictions[name] = task.predict(predictor, rows, reading, names)
        if like is not None:
            for metric in ("f1", "precision", "recall", "accuracy", "f1_PER", "f1_LOC"):
                assert measured[metric] == pytest.approx(trained[like][f"test_{metric}"], abs=1e-9)
        entities = predictor.predict(rows["text"])
        expected = [
            task.words_of_prediction(own, rows, row, reading, names) for row, own in enumerate(predictions[name])
        ]
        assert [
            ", ".join(f"{own['text']} ({own['label']})" for own in found) or "none" for found in entities
        ] == expected
        assert [own["entities"] for own in answer(predictor, rows["text"][:], 1)] == [
            [{**own, "score": pytest.approx(own["score"], abs=1e-4)} for own in found] for found in entities
        ]
    assert predictions["onnx"] == predictions["student"]
    assert evaluate_model(folder / "teacher", test, teacher=folder / "teacher")["agreement"] == 1


def test_the_model_is_plain_transformers(folder):
    model = AutoModelForTokenClassification.from_pretrained(folder / "student")
    assert [*model.config.id2label.values()] == NAMES
    assert model.config.num_hidden_layers == 1
    (found,) = load_predictor(folder / "student").predict(["w15"])
    (same,) = pipeline("token-classification", str(folder / "student"))("w15")
    assert (found[0]["label"], found[0]["score"]) == (same["entity"][2:], pytest.approx(same["score"], abs=1e-5))


def save_another_order(folder):
    """A model with random weights, whose classes have another order."""
    labels = ["B-PER", "O", "I-PER", "B-LOC"]
    numbers = {name: number for number, name in enumerate(labels)}
    model = make_model("bert", "token_classification", num_labels=4, id2label=dict(enumerate(labels)), label2id=numbers)
    model.save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)
    return folder


def test_another_order_of_classes(folder, tmp_path):
    other = save_another_order(tmp_path / "other")
    test = folder / "test.conll"
    measured = evaluate_model(other, test, teacher=folder / "teacher", max_length=20, stride=6)
    back = evaluate_model(folder / "teacher", test, teacher=other, max_length=20)
    assert measured["agreement"] == back["agreement"] < 0.5
    assert back["f1"] > 0.8
    trainer = train(folder, tmp_path / "out", {}, teacher_model_name_or_path=str(other), max_steps=1)
    assert [*trainer.model.config.id2label.values()] == ["B-PER", "O", "I-PER", "B-LOC"]
    first = make_sentences(64, seed=0)[0][1][0]
    assert trainer.train_dataset[0]["labels"][1] == trainer.model.config.label2id[first]


def test_report(folder, tmp_path, monkeypatch):
    starts = {"peak_memory": 1, "cold_start": 0.5, "imports_torch": False}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: starts)
    monkeypatch.setattr(benchmark, "BURST", 1)
    other = save_another_order(tmp_path / "other")
    data = {"max_length": 20, "stride": 6}
    models = folder / "teacher", other, folder / "test.conll", tmp_path / "report"
    report = write_report(*models, lengths=[8], rounds=1, threads=1, num_examples=2, **data)
    assert {"f1", "precision", "recall", "accuracy"} <= report["models"]["student"]["quality"].keys()
    assert set(report["models"]["student"]["fidelity"]) == {"agreement", "f1_to_teacher"}
    assert report["examples"][0]["difference"] >= report["examples"][1]["difference"] >= 1
    assert "(PER)" in report["examples"][0]["label"] + report["examples"][0]["teacher"]


def test_unlabelled_words(folder, tmp_path):
    """From the teacher alone. Without labels, only `kl_positions="attended"` compares anything."""
    words = write_words(tmp_path / "more.jsonl", make_sentences(48, seed=3))
    data = {"train_file": None, "unlabelled_file": words, "test_file": str(folder / "test.conll")}
    options = {"teacher_model_name_or_path": str(folder / "teacher"), "alpha_task": 0.0, "alpha_cos": 0.0}
    with pytest.raises(ValueError, match="has no labels, but kl_positions='labels' compares student and teacher only"):
        train(folder, tmp_path / "none", data, **options)
    before = train(folder, tmp_path / "before", data, **options, kl_positions="attended", learning_rate=0.0)
    trainer = train(folder, tmp_path / "after", data, **options, kl_positions="attended")
    assert [*trainer.model.config.id2label.values()] == NAMES
    f1 = [json.loads((tmp_path / name / "test_results.json").read_text())["test_f1"] for name in ("before", "after")]
    assert f1[1] > f1[0] + 0.1
    assert before is not None


def test_lora(folder, tmp_path):
    own = {"model_name_or_path": str(folder / "teacher"), "lora_rank": 2, "test_file": str(folder / "test.conll")}
    train(folder, tmp_path / "lora", own, max_steps=2, learning_rate=1e-4)
    assert not list((tmp_path / "lora").glob("adapter*"))
    assert json.loads((tmp_path / "lora" / "test_results.json").read_text())["test_f1"] > 0.8
    assert load_predictor(tmp_path / "lora").encoder.stride == 6


def test_bad_data_stops_before_training(folder, tmp_path):
    (tmp_path / "bad.conll").write_text("w5 B-PER\nw6 I-PER\n\nw7 X-PER\n")
    own = {"model_name_or_path": str(folder / "pretrained"), "train_file": str(tmp_path / "bad.conll")}
    with pytest.raises(
        ValueError, match=r"bad\.conll, sentence at line 4: the tag 'X-PER' is neither O nor begins with"
    ):
        train(folder, tmp_path / "out", own)
    own = {"model_name_or_path": str(folder / "pretrained"), "stride": 18}
    with pytest.raises(ValueError, match=r"stride=18 must be at least 0 and below the 18 tokens of text"):
        train(folder, tmp_path / "out", own)
    (tmp_path / "one.conll").write_text("w5 B-PER\nw40 O\n")
    data = {"train_file": str(tmp_path / "one.conll"), "test_file": str(folder / "test.conll")}
    with pytest.raises(ValueError, match=r"test\.conll, sentence at line \d+: the tag 'B-LOC' is unknown"):
        train(folder, tmp_path / "out", {"model_name_or_path": str(folder / "pretrained"), **data})
