"""The rows of a search: what is held out, what is left out."""

import dataclasses
from types import SimpleNamespace

import pytest

from hf_distill import TASKS
from hf_distill.compression.data import Parts, load_parts, with_variants, without_some_unlabelled
from hf_distill.compression.workshop import Workshop
from tests.compression.requests import data_of, write_csv, write_request

TASK = TASKS["text-classification"]


@pytest.fixture
def folder(tmp_path):
    return write_request(tmp_path)


def load(folder, **options):
    args = data_of(folder, **options)
    reading = {**TASK.reading_of(args), "problem_type": "single_label_classification"}
    return load_parts(TASK, args, reading, str(folder / "teacher"))


def test_a_part_of_the_test_rows_chooses(folder):
    parts = load(folder)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [160, 80, 120]
    assert parts.num_labelled == 160
    assert not {*parts.test["text"]} & {*parts.validation["text"]}
    assert parts.test["text"][:] == load(folder).test["text"][:]


def test_validation_file(folder):
    rows = [line.rsplit(",", 1) for line in (folder / "test.csv").read_text().splitlines()[1:]]
    write_csv(folder / "other.csv", rows[:50])
    write_csv(folder / "test.csv", rows[50:])
    parts = load(folder, validation_file=str(folder / "other.csv"))
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [160, 50, 150]


def test_rows_in_two_parts_are_named(folder):
    text = (folder / "test.csv").read_text().splitlines()[3].rsplit(",", 1)[0]
    (folder / "more.txt").write_text(f"w5 w5 w5 w5 w5 w5\n{text}\n")
    with pytest.raises(ValueError, match=rf"1 of \d+ (test|validation) rows are also training .*such as '{text}'"):
        load(folder, unlabelled_file=str(folder / "more.txt"))
    (folder / "train.csv").rename(folder / "other.csv")
    with pytest.raises(ValueError, match="160 of 160 validation rows are also training rows, such as "):
        load(folder, train_file=str(folder / "other.csv"), validation_file=str(folder / "other.csv"))


def test_labelled_rows_are_never_left_out(folder):
    (folder / "more.txt").write_text("".join(f"w5 w5 w5 w5 w5 w5 w5 w{5 + number}\n" for number in range(30)))
    parts = load(folder, unlabelled_file=str(folder / "more.txt"))
    assert len(parts.train) == 190
    assert parts.num_labelled == 160
    fewer = without_some_unlabelled(parts, 170)
    assert fewer.train["labels"][:160] == parts.train["labels"][:160]
    assert fewer.train["labels"][160:] == [-100] * 10
    assert fewer.train["text"][:] == without_some_unlabelled(parts, 170).train["text"][:]
    assert len(without_some_unlabelled(parts, 5).train) == 160
    assert without_some_unlabelled(parts, 190) == parts


def test_only_unlabelled_rows(folder):
    (folder / "more.txt").write_text("w5 w5 w5 w5 w5 w5\nw6 w6 w6 w6 w6 w6\n")
    parts = load(folder, train_file=None, unlabelled_file=str(folder / "more.txt"))
    assert parts.num_labelled == 0
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [2, 80, 120]
    assert dataclasses.asdict(parts)["classes"] == ["one", "other"]


READING = {"problem_type": "single_label_classification"}


def test_variants_take_half_of_the_room(folder):
    (folder / "more.txt").write_text("".join(f"w5 w5 w5 w5 w5 w5 w5 w{5 + number}\n" for number in range(60)))
    parts = load(folder, unlabelled_file=str(folder / "more.txt"))
    varied = with_variants(parts, TASK, READING, 200)  # room for 40 rows
    assert 5 < varied.num_variants <= 20  # a variant that is the text itself is left out
    assert len(varied.train) == 200
    assert varied.num_labelled == 160
    assert varied.train["labels"][:160] == parts.train["labels"][:160]
    assert varied.train["labels"][160:] == [-100] * 40
    others = {*parts.train["text"][160:]}
    assert {*varied.train["text"][160 + varied.num_variants :]} <= others
    assert not {*varied.train["text"][160 : 160 + varied.num_variants]} & others
    assert varied.train["text"][:] == with_variants(parts, TASK, READING, 200).train["text"][:]
    assert with_variants(parts, TASK, READING, 150).train["text"][:] == parts.train["text"][:160]


def test_variants_of_each_labelled_row(folder):
    parts = load(folder)
    varied = with_variants(parts, TASK, READING, 10_000)
    assert 240 < varied.num_variants <= 480
    assert len(varied.train) == 160 + varied.num_variants


@pytest.mark.parametrize(
    ("num_labelled", "num_variants", "num_others", "texts"),
    [
        (2, 0, 0, ["all"]),
        (0, 0, 3, ["all"]),
        (2, 0, 3, ["labelled", "all"]),
        (2, 4, 0, ["labelled", "all"]),
        (2, 4, 3, ["labelled", "labelled and variants", "all"]),
    ],
)
def test_choices_of_training_rows(num_labelled, num_variants, num_others, texts):
    train = range(num_labelled + num_variants + num_others)
    parts = Parts(train, num_labelled, None, None, None, num_variants)
    assert Workshop.texts(SimpleNamespace(parts=parts)) == texts


def test_no_variants_of_what_is_no_text(folder):
    parts = load(folder)
    assert with_variants(parts, TASKS["token-classification"], {}, 10_000) == parts
    assert with_variants(parts, TASKS["image-classification"], READING, 10_000) == parts
