"""Classifiers of pairs of texts from data to service, on tiny models."""

import json
import random

import datasets
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from hf_distill import (
    DistillationTrainingArguments,
    TextPairClassificationArguments,
    evaluate_model,
    export_model,
    load_predictor,
    train_model,
)
from hf_distill.cli import main
from hf_distill.tasks.registry import TASKS
from tests.conftest import make_model
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.serving.running import RunningService

WORDS = {"no": range(5, 33), "yes": range(33, 61)}
COLUMNS = {"text_column": "question", "text_pair_column": "answer", "label_column": "fits"}


def make_rows(num_rows, seed):
    """The words of the answer say whether it fits."""
    generator = random.Random(seed)
    rows = []
    for index in range(num_rows):
        fits = ["no", "yes"][index % 2]
        answer = " ".join(f"w{word}" for word in generator.choices(WORDS[fits], k=generator.randint(1, 40)))
        rows.append(
            {"question": f"w{5 + index % 50} w6", "answer": answer, "fits": fits, "closeness": float(index % 2)}
        )
    return rows


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `train.jsonl`, `test.jsonl`, and `pretrained`."""
    folder = tmp_path_factory.mktemp("pairs")
    datasets.config.HF_DATASETS_CACHE, before = str(folder / "cache"), datasets.config.HF_DATASETS_CACHE
    write(folder / "train.jsonl", make_rows(96, 0))
    write(folder / "test.jsonl", make_rows(24, 1))
    make_model("bert", "mlm").save_pretrained(folder / "pretrained")
    make_pair_tokenizer().save_pretrained(folder / "pretrained")
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


def train(folder, output, training=None, **task):
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 2e-3,
        "num_train_epochs": 4,
        "save_strategy": "no",
    }
    training = DistillationTrainingArguments(str(folder / output), **{**options, **(training or {})})
    return train_model(TextPairClassificationArguments(overwrite=True, **{**COLUMNS, **task}), training)


@pytest.fixture(scope="module")
def teacher(folder):
    """A classifier that was trained on labels, in `teacher`."""
    files = {"train_file": str(folder / "train.jsonl"), "test_file": str(folder / "test.jsonl")}
    train(folder, "teacher", model_name_or_path=str(folder / "pretrained"), **files)
    return folder / "teacher"


def test_the_same_predictions_from_training_to_service(folder, teacher, tmp_path, capsys):
    results = json.loads((teacher / "test_results.json").read_text())
    assert results["test_accuracy"] > 0.9
    config = AutoModelForSequenceClassification.from_pretrained(teacher).config
    assert config.id2label == {0: "no", 1: "yes"}
    assert {**COLUMNS, "task": "text-pair-classification", "reads_pairs": True}.items() <= config.task_options.items()

    pairs = [(row["question"], row["answer"]) for row in make_rows(24, 1)]
    expected = load_predictor(teacher).logits(pairs)
    right = [row["fits"] for row in make_rows(24, 1)]
    predicted = load_predictor(teacher).predict(pairs)
    accuracy = np.mean([own["label"] == label for own, label in zip(predicted, right, strict=True)])
    assert results["test_accuracy"] == pytest.approx(accuracy)
    assert main(["evaluate", str(teacher), "--data", str(folder / "test.jsonl"), "--teacher", str(teacher)]) == 0
    assert "agreement" in capsys.readouterr().out

    for format in ("onnx", "onnx-int8"):
        export = export_model(teacher, tmp_path / format, format, min_agreement=0)
        logits = load_predictor(export.folder).logits(pairs)
        np.testing.assert_allclose(logits, expected, atol=1e-4 if format == "onnx" else 0.3)
        assert evaluate_model(export.folder, folder / "test.jsonl")["accuracy"] == pytest.approx(accuracy, abs=0.1)

    with RunningService(tmp_path, tmp_path / "onnx-int8", "--workers", "1") as service:
        answers = service.post({"texts": pairs}).json
        truncated = [own.pop("truncated", False) for own in answers]
        assert any(truncated)
        assert answers == load_predictor(tmp_path / "onnx-int8", threads=1).predict(pairs)
        assert service.post({"query": "w5", "documents": ["w6"]}, "/rerank").status == 404


def test_from_a_teacher_alone(folder, teacher, tmp_path):
    rows = [{name: row[name] for name in ("question", "answer")} for row in make_rows(32, 2)]
    losses = {"alpha_task": 0.0, "alpha_cos": 0.0, "teacher_model_name_or_path": str(teacher)}
    trainer = train(folder, "student", losses, unlabelled_file=write(tmp_path / "pairs.jsonl", rows))
    assert trainer.model.config.num_hidden_layers == 2
    measured = evaluate_model(folder / "student", folder / "test.jsonl", teacher=teacher)
    assert measured["agreement"] > 0.7


def test_variants_of_pairs_stay_pairs(folder):
    task, reading = TASKS["text-pair-classification"], {**COLUMNS, "problem_type": "single_label_classification"}
    rows, classes = task.load(str(folder / "train.jsonl"), reading, None)
    variants = task.variants(rows, reading, classes)
    assert 48 < len(variants) <= 96  # short texts may stay as they are
    assert set(variants["labels"]) == {-100}
    own = [tuple(row[column] for column in task.text_columns) for row in rows]
    varied = [tuple(row[column] for column in task.text_columns) for row in variants]
    assert not {*own} & {*varied}
    assert {question for question, _ in varied} <= {question for question, _ in own}  # of two words each


def test_numbers(folder):
    options = {"label_column": "closeness", "problem_type": "regression", "train_file": str(folder / "train.jsonl")}
    train(folder, "numbers", model_name_or_path=str(folder / "pretrained"), **options)
    measured = evaluate_model(folder / "numbers", folder / "test.jsonl")
    assert {"spearmanr", "pearsonr", "mean_squared_error"} < measured.keys()
    assert measured["spearmanr"] > 0.5


def test_a_pair_with_one_text_missing(folder, tmp_path):
    rows = make_rows(6, 3)
    rows[3]["answer"] = None
    with pytest.raises(ValueError, match=r"bad\.jsonl has empty texts in the column 'answer', in row 4"):
        train(
            folder, "bad", model_name_or_path=str(folder / "pretrained"), train_file=write(tmp_path / "bad.jsonl", rows)
        )
    assert not (folder / "bad").exists()
    with pytest.raises(ValueError, match="problem_type='ranking' must be one of single_label_classification"):
        TextPairClassificationArguments(problem_type="ranking")


def test_words(folder):
    task = TASKS["text-pair-classification"]
    rows, classes = task.load(
        str(folder / "test.jsonl"), task.reading_defaults() | COLUMNS | task.complete({}, []), None
    )
    assert task.words_of_input(rows, 0) == f"{rows[0]['text']} | {rows[0]['text_pair']}"
    assert task.words_of_label(rows, 1, {}, classes) == "yes"
