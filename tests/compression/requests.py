"""A tiny teacher with its data, and searches that end after a few students."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch

from hf_distill import TextClassificationArguments, compress
from hf_distill.compression.search import Search, students_of
from tests.conftest import make_model, make_text_tokenizer, make_texts

MODULE = sys.modules["hf_distill.compression.compress"]
LABELS = ["one", "other"]

MOST_TRIALS = 50
"""A search may refuse every proposal, and its test must not go on for ever."""


def write_request(folder: Path, num_train: int = 160, num_test: int = 200, wrong: float = 0.1, **sizes: int) -> Path:
    """Writes `teacher`, a random classifier, and `train.csv` and `test.csv` with its own labels, some of them wrong."""
    torch.manual_seed(0)
    tokenizer = make_text_tokenizer()
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: number for number, label in enumerate(LABELS)}}
    model = make_model("bert", "classification", num_labels=2, **{"num_hidden_layers": 4, **sizes}, **names)
    texts = list(dict.fromkeys(make_texts(2 * (num_train + num_test), seed=1, longest=8)))[: num_train + num_test]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**inputs).logits.diff(dim=1)[:, 0]
        model.classifier.bias[0] += scores.median()  # both classes are as frequent
    classes = (scores > scores.median()).long().numpy()
    flipped = np.random.default_rng(0).random(len(texts)) < wrong
    labels = [LABELS[own] for own in np.where(flipped, 1 - classes, classes)]
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    rows = list(zip(texts, labels, strict=True))
    write_csv(folder / "train.csv", rows[:num_train])
    write_csv(folder / "test.csv", rows[num_train:])
    return folder


def write_csv(file: Path, rows: list) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def data_of(folder: Path, **options) -> TextClassificationArguments:
    return TextClassificationArguments(
        **{"train_file": str(folder / "train.csv"), "test_file": str(folder / "test.csv"), **options}
    )


def search(folder: Path, output: str = "small", data: TextClassificationArguments | None = None, **options):
    """`compress` with defaults that suit the tiny teacher."""
    return compress(
        folder / "teacher",
        data or data_of(folder),
        folder / output,
        **{"keep": 0.8, "budget": "1h", "formats": ("pytorch",), "threads": 1, **options},
    )


def end_after(monkeypatch, students: int) -> None:
    """Lets searches end after some students, whose trainings are short, and measures no other seeds."""

    def run(self: Search) -> None:
        wanted = len(students_of(self.study)) + students
        for _ in range(MOST_TRIALS):
            if len(students_of(self.study)) == wanted:
                return
            self._propose()
            self.study.optimize(self._try, n_trials=1)
        raise AssertionError(f"{MOST_TRIALS} trials have not trained {students} students.")

    monkeypatch.setattr(Search, "run", run)
    monkeypatch.setattr(MODULE, "UNITS", 1e9)
    monkeypatch.setattr(sys.modules["hf_distill.compression.answer"], "SEEDS", 0)


def record_of(folder: Path, output: str = "small") -> dict:
    return json.loads((folder / output / "compression.json").read_text())
