"""The rows of a search: what is held out, what is left out."""

import dataclasses

import pytest

from hf_distill import TASKS
from hf_distill.compression.data import load_parts, without_some_unlabelled
from tests.compression.requests import data_of, write_csv, write_request

TASK = TASKS["text-classification"]


@pytest.fixture
def folder(tmp_path):
    return write_request(tmp_path)


def load(folder, **options):
    args = data_of(folder, **options)
    reading = {**TASK.reading_of(args), "problem_type": "single_label_classification"}
    return load_parts(TASK, args, reading, str(folder / "teacher"))


def test_a_quarter_is_held_out(folder):
    parts = load(folder)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [120, 40, 200]
    assert parts.num_labelled == 120
    assert not {*parts.train["text"]} & {*parts.validation["text"]}


def test_training_rows_that_are_validation_rows_are_left_out(folder):
    rows = [line.rsplit(",", 1) for line in (folder / "train.csv").read_text().splitlines()[1:]]
    write_csv(folder / "other.csv", rows[:10])
    parts = load(folder, validation_file=str(folder / "other.csv"))
    assert [len(parts.train), len(parts.validation)] == [150, 10]


def test_unlabelled_test_rows_are_named(folder):
    text = (folder / "test.csv").read_text().splitlines()[3].rsplit(",", 1)[0]
    (folder / "more.txt").write_text(f"w5 w5 w5 w5 w5 w5\n{text}\n")
    with pytest.raises(ValueError, match=r"1 of 200 test rows are also in the training or validation data \(row 3, "):
        load(folder, unlabelled_file=str(folder / "more.txt"))


def test_labelled_rows_are_never_left_out(folder):
    (folder / "more.txt").write_text("".join(f"w5 w5 w5 w5 w5 w5 w5 w{5 + number}\n" for number in range(30)))
    parts = load(folder, unlabelled_file=str(folder / "more.txt"))
    assert len(parts.train) == 150
    assert parts.num_labelled == 120
    fewer = without_some_unlabelled(parts, 130)
    assert fewer.train["labels"][:120] == parts.train["labels"][:120]
    assert fewer.train["labels"][120:] == [-100] * 10
    assert fewer.train["text"][:] == without_some_unlabelled(parts, 130).train["text"][:]
    assert len(without_some_unlabelled(parts, 5).train) == 120
    assert without_some_unlabelled(parts, 150) == parts


def test_only_unlabelled_rows(folder):
    (folder / "more.txt").write_text("w5 w5 w5 w5 w5 w5\nw6 w6 w6 w6 w6 w6\n")
    train = str(folder / "train.csv")
    parts = load(folder, train_file=None, validation_file=train, unlabelled_file=str(folder / "more.txt"))
    assert parts.num_labelled == 0
    assert [len(parts.train), len(parts.validation)] == [2, 160]
    assert dataclasses.asdict(parts)["classes"] == ["one", "other"]
