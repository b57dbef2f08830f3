"""Several classes for each text, and numbers: from data to predictions, the same at each stop."""

import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import (
    TASKS,
    DistillationTrainingArguments,
    TextClassificationArguments,
    evaluate_model,
    export_model,
    load_predictor,
    train_model,
    write_report,
)
from hf_distill.evaluation import benchmark
from hf_distill.serving.worker import answer
from tests.conftest import make_model, make_text_tokenizer

NAMES = ["angry", "glad", "sad"]
OPTIONS = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 2e-3}


def make_rows(problem_type, num_rows, seed):
    """The words of a text say its label."""
    generator = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        chosen = [name for name in NAMES if generator.random() < 0.5]
        words = [
            f"w{generator.randint(10 * NAMES.index(name) + 5, 10 * NAMES.index(name) + 14)}" for name in chosen * 4
        ]
        label = chosen if problem_type == "multi_label_classification" else len(chosen) - 1.5
        rows.append({"text": " ".join([*words, "w50"]), "label": label})
    return rows


@pytest.fixture(params=["multi_label_classification", "regression"])
def problem_type(request):
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch, problem_type):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, (num_rows, seed) in {"train": (64, 0), "test": (32, 1)}.items():
        rows = make_rows(problem_type, num_rows, seed)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "more.txt").write_text("\n".join(row["text"] for row in make_rows(problem_type, 32, 2)))
    make_model("bert", "mlm").save_pretrained("pretrained")
    make_text_tokenizer().save_pretrained("pretrained")
    return tmp_path


def fine_tune(problem_type):
    args = TextClassificationArguments(
        model_name_or_path="pretrained",
        train_file="train.jsonl",
        test_file="test.jsonl",
        problem_type=problem_type,
    )
    train_model(args, DistillationTrainingArguments("teacher", num_train_epochs=8, **OPTIONS))


def test_the_whole_way(folder, problem_type, monkeypatch):
    fine_tune(problem_type)
    args = TextClassificationArguments(train_file="train.jsonl", unlabelled_file="more.txt", test_file="test.jsonl")
    training = {"teacher_model_name_or_path": "teacher", "num_train_epochs": 5, **OPTIONS}
    train_model(args, DistillationTrainingArguments("student", **training))
    model = AutoModelForSequenceClassification.from_pretrained("student")
    assert model.config.problem_type == problem_type
    tested = json.loads((folder / "student" / "test_results.json").read_text())

    found = evaluate_model("student", "test.jsonl", teacher="teacher")
    metric, fidelity = {
        "multi_label_classification": ("f1_micro", "agreement"),
        "regression": ("spearmanr", "spearmanr_to_teacher"),
    }[problem_type]
    assert found[metric] == pytest.approx(tested[f"test_{metric}"], abs=5e-3)  # ranks may swap
    assert found[metric] > 0.8
    assert 0.8 < found[fidelity] <= 1

    texts = [row["text"] for row in make_rows(problem_type, 32, 1)]
    batch = AutoTokenizer.from_pretrained("student")(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    scores = logits if problem_type == "regression" else logits.sigmoid()
    export_model("student", "onnx", "onnx", texts=texts)
    for export in ("student", "onnx"):
        predicted = load_predictor(export).predict(texts, top_k=None)
        by_label = [{own["label"]: own["score"] for own in row} for row in predicted]
        for row, expected in zip(by_label, scores, strict=True):
            names = ["LABEL_0"] if problem_type == "regression" else NAMES
            assert [row[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-4)
        served = answer(load_predictor(export), texts[:4], 3)
        assert [own["scores"] for own in served] == predicted[:4]

    monkeypatch.setattr(
        benchmark, "_starts", lambda *args: {"peak_memory": 1, "cold_start": 0.5, "imports_torch": False}
    )
    report = write_report("teacher", "student", "test.jsonl", "report", exports=["onnx"], rounds=1, lengths=[8])
    assert report["models"]["student"]["quality"][metric] == pytest.approx(found[metric], abs=5e-3)
    assert report["models"]["student"]["fidelity"][fidelity] == pytest.approx(found[fidelity], abs=5e-3)
    assert report["models"]["onnx"]["fidelity_to_student"][fidelity] == pytest.approx(1, abs=5e-3)
    assert (folder / "report" / "quality_against_latency.png").exists()
    assert not (folder / "report" / "calibration.png").exists()


def test_variants_have_the_labels_of_unlabelled_texts(folder, problem_type):
    task, reading = TASKS["text-classification"], {"text_column": "text", "label_column": "label"}
    reading["problem_type"] = problem_type
    rows, classes = task.load("train.jsonl", reading, None)
    unlabelled = task.load_unlabelled("more.txt", reading, classes)
    variants = task.variants(rows, reading, classes)
    assert variants.features == rows.features
    assert str(variants[0]["labels"]) == str(unlabelled[0]["labels"])  # nan is not equal to itself


def test_a_model_for_something_else(folder, problem_type):
    model = make_model("bert", "classification", num_labels=3)
    model.config.problem_type = "single_label_classification"
    model.save_pretrained("other")
    make_text_tokenizer().save_pretrained("other")
    args = TextClassificationArguments(train_file="train.jsonl", problem_type=problem_type)
    training = DistillationTrainingArguments("student", teacher_model_name_or_path="other", **OPTIONS)
    with pytest.raises(ValueError, match=f"problem_type={problem_type}, but the model or its teacher is trained for"):
        train_model(args, training)
    with pytest.raises(ValueError, match="problem_type='ranking' must be one of"):
        TextClassificationArguments(problem_type="ranking")
