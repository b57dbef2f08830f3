"""A second row in `TASKS`: everything that a task must define for training and evaluation."""

import json
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, load_dataset

from hf_distill import DistillationTrainingArguments
from hf_distill.tasks import TASKS
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.evaluation import evaluate
from hf_distill.tasks.training import train
from tests.conftest import make_model, make_text_tokenizer
from tests.tasks.test_text_classification import make_reviews

NAMES = ["other", "same"]


@dataclass
class PairArguments(TaskArguments):
    first_column: str = "first"
    second_column: str = "second"
    relation_column: str = "relation"


def load_pairs(source, first_column, second_column, relation_column, label_names=None, split=None, config_name=None):
    rows = load_dataset("json", data_files=source, split="train")
    rows = rows.rename_columns({first_column: "first", second_column: "second", relation_column: "labels"})
    return rows.cast_column("labels", ClassLabel(names=NAMES)), NAMES


def encode_pairs(rows, tokenizer, max_length, truncation):
    def encode(pairs):
        return tokenizer(pairs["first"], pairs["second"], truncation=True, max_length=max_length)

    return rows.map(encode, batched=True, remove_columns=["first", "second"])


@torch.inference_mode()
def predict_pairs(model, tokenizer, rows, max_length, truncation, batch_size, label_names):
    batch = tokenizer(
        rows["first"][:], rows["second"][:], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    return model(**batch.to(model.device)).logits.cpu()


PAIRS = replace(
    TASKS["text-classification"],
    purpose="to compare texts",
    columns={"first_column": "first", "second_column": "second", "relation_column": "relation"},
    text_columns=["first", "second"],
    load=load_pairs,
    encode=encode_pairs,
    predict=predict_pairs,
    metrics=lambda logits, labels, teacher_logits=None: {
        "right": float((np.asarray(logits).argmax(-1) == np.asarray(labels)).mean())
    },
    metric_packages=(),
    plot=lambda logits, labels, folder: (folder / "plot.txt").write_text(" ".join(logits)),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    texts = make_reviews(64, seed=0)
    rows = [
        {"a": one, "b": other, "relation": NAMES[label == own]}
        for (one, label), (other, own) in zip(texts, texts[1:] + texts[:1], strict=True)
    ]
    Dataset.from_list(rows).to_json("pairs.jsonl")
    model = make_model("bert", "classification", id2label=dict(enumerate(NAMES)))
    model.save_pretrained("teacher")
    make_text_tokenizer().save_pretrained("teacher")
    return tmp_path


def test_a_second_row(folder):
    args = PairArguments(train_file="pairs.jsonl", test_file="pairs.jsonl", first_column="a", second_column="b")
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    training = DistillationTrainingArguments("student", teacher_model_name_or_path="teacher", **options)
    trainer = train(PAIRS, args, training)
    (one, _), (other, _) = make_reviews(64, seed=0)[:2]
    pair = make_text_tokenizer()(one, other, truncation=True, max_length=38)
    assert trainer.train_dataset["input_ids"][0] == pair["input_ids"]
    tested = json.loads((folder / "student" / "test_results.json").read_text())["test_right"]

    given = dict.fromkeys(PAIRS.columns)  # as the student was trained
    options = {"columns": given, "split": "test", "config_name": None, "max_length": None, "truncation": None}
    found = evaluate(
        PAIRS, "student", "pairs.jsonl", teacher="teacher", batch_size=32, output=folder / "report", **options
    )
    assert found == {"texts": 64, "right": pytest.approx(tested)}
    written = json.loads((folder / "report" / "evaluation.json").read_text())
    assert {name: written[name] for name in PAIRS.columns} == {
        "first_column": "a",
        "second_column": "b",
        "relation_column": "relation",
    }
    assert (folder / "report" / "plot.txt").read_text() == "student teacher"


def test_a_model_without_the_head(folder):
    make_model("bert", "mlm").save_pretrained("pretrained")
    options = {"columns": dict.fromkeys(PAIRS.columns), "split": "test", "config_name": None, "max_length": None}
    with pytest.raises(ValueError, match="pretrained has no head trained to compare texts"):
        evaluate(
            PAIRS, "pretrained", "pairs.jsonl", teacher=None, truncation=None, batch_size=32, output=None, **options
        )
