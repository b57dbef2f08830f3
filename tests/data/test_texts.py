"""Texts and labels from every kind of file, and errors for invalid ones."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.exceptions import DatasetNotFoundError

from hf_distill import load_labelled_texts, load_unlabelled_texts
from hf_distill.data import reading

ROWS = [("a good film", "pos"), ("a bad film", "neg"), ("drei Wörter,\nzwei Zeilen", "pos")]
TEXTS = [text for text, _ in ROWS]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def columns(labels, texts=TEXTS):
    return {"id": list(range(len(texts))), "review": list(texts), "mood": list(labels)}


def write_csv(folder, labels):
    lines = [f'{n},"{text}",{label}' for n, (text, label) in enumerate(zip(TEXTS, labels, strict=True))]
    (folder / "data.csv").write_text("\n".join(["id,review,mood", *lines]), encoding="utf-8")
    return folder / "data.csv"


def write_json(folder, labels):
    rows = [{"review": text, "mood": label} for text, label in zip(TEXTS, labels, strict=True)]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "data.json"


def write_json_lines(folder, labels):
    rows = [{"review": text, "mood": label} for text, label in zip(TEXTS, labels, strict=True)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "data.jsonl"


def write_parquet(folder, labels):
    Dataset.from_dict(columns(labels)).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def write_folder_for_load_dataset(folder, labels):
    (folder / "data").mkdir()
    Dataset.from_dict(columns(labels)).to_parquet(folder / "data" / "train.parquet")
    return folder / "data"


WRITERS = [write_csv, write_json, write_json_lines, write_parquet, write_folder_for_load_dataset]


def load(source, **options):
    return load_labelled_texts(source, "review", "mood", **options)


@pytest.mark.parametrize("write", WRITERS)
def test_names(tmp_path, write):
    loaded, names = load(write(tmp_path, [label for _, label in ROWS]))
    assert names == ["neg", "pos"]
    assert loaded.to_dict() == {"text": TEXTS, "labels": [1, 0, 1]}


@pytest.mark.parametrize("write", WRITERS)
def test_numbers(tmp_path, write):
    loaded, names = load(write(tmp_path, [1, 0, 1]))
    assert names == ["LABEL_0", "LABEL_1"]
    assert loaded["labels"][:] == [1, 0, 1]


@pytest.mark.parametrize("write", [write_csv, write_json])
def test_truth_values_are_names(tmp_path, write):
    loaded, names = load(write(tmp_path, [True, False, True]))
    assert names == ["False", "True"]
    assert loaded["labels"][:] == [1, 0, 1]


def test_folder_of_a_folder_for_each_class(tmp_path):
    """A folder like aclImdb/train, including its unlabelled texts and lists of addresses."""
    for file, text in {
        "pos/0_9.txt": "good",
        "neg/0_1.txt": "bad",
        "pos/1_7.txt": "fine",
        "unsup/0_0.txt": "?",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "urls_pos.txt").write_text("http://")
    loaded, names = load_labelled_texts(tmp_path)
    assert names == ["neg", "pos"]
    assert loaded.to_dict() == {"text": ["bad", "good", "fine"], "labels": [0, 1, 1]}
    loaded, _ = load_labelled_texts(tmp_path, label_names=["pos", "neg"])
    assert loaded["labels"][:] == [1, 0, 0]
    assert load_unlabelled_texts(tmp_path / "unsup").to_dict() == {"text": ["?"], "labels": [-100]}


def test_class_labels_keep_their_order(tmp_path, monkeypatch):
    features = Features({"review": Value("string"), "mood": ClassLabel(names=["pos", "neg"])})
    rows = Dataset.from_dict({"review": TEXTS, "mood": [0, 1, 0]}, features=features)
    on_hub = DatasetDict({"test": rows})
    asked = []
    monkeypatch.setattr(reading, "load_dataset", lambda *args, split: asked.append((*args, split)) or on_hub[split])
    loaded, names = load("someone/moods", split="test", config_name="english")
    assert asked == [("someone/moods", "english", "test")]
    assert (names, loaded["labels"][:]) == (["pos", "neg"], [0, 1, 0])
    # by name, and by number among placeholder names
    assert load("someone/moods", split="test", label_names=["neg", "none", "pos"])[0]["labels"][:] == [2, 0, 2]
    assert load("someone/moods", split="test", label_names=["LABEL_0", "LABEL_1"])[0]["labels"][:] == [0, 1, 0]
    for other in (["NEG", "POS"], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        with pytest.raises(ValueError, match="does not have: neg, pos"):
            load("someone/moods", split="test", label_names=other)

    hidden = Dataset.from_dict({"review": TEXTS, "mood": [-1, 1, -1]}, features=features)
    monkeypatch.setattr(reading, "load_dataset", lambda *args, split: hidden)
    with pytest.raises(ValueError, match="has no label in 2 rows: 1, 3"):
        load("someone/moods")


@pytest.mark.parametrize(
    ("labels", "label_names", "expected"),
    [
        (["pos", "neg", "pos"], ["pos", "neg"], [0, 1, 0]),
        (["pos", "pos", "pos"], ["neg", "none", "pos"], [2, 2, 2]),
        ([1, 1, 0], ["neg", "pos"], [1, 1, 0]),
        ([5, 1, 5], ["1", "3", "5"], [2, 0, 2]),  # a name comes before a number
        ([0, 1, 0], ["1", "0"], [1, 0, 1]),
    ],
)
def test_labels_of_training_or_of_a_model(tmp_path, labels, label_names, expected):
    loaded, names = load(write_csv(tmp_path, labels), label_names=label_names)
    assert names == label_names
    assert loaded["labels"][:] == expected


def test_csv_is_read_as_it_is_written(tmp_path):
    """Words that pandas reads as missing, very long texts, a byte order mark, blank lines, spaces."""
    long = "word " * 50_000
    rows = ["\ufefftext,,label", "None,1,a", "", "NA,2,null", f'"{long}",x, a']
    (tmp_path / "data.csv").write_text("\r\n".join(rows), encoding="utf-8")
    loaded, names = load_labelled_texts(tmp_path / "data.csv")
    assert loaded.to_dict() == {"text": ["None", "NA", long], "labels": [0, 1, 0]}
    assert names == ["a", "null"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, 0.0, 1.0], r"'mood', row 1: 1.0 is a float, not a class"),
        ([1, 0.5, 0], r"'mood', row \d: (1.0|0.5) is a float"),
        ([0, 2, 0], "has the labels 0, 2: numeric labels must be 0 to 1"),
        ([1, 2, 3], "has the labels 1, 2, 3: numeric labels must be 0 to 2"),
        (["a", "a", "a"], "has only one class, 'a'"),
    ],
)
def test_bad_labels(tmp_path, write, labels, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, labels))


@pytest.mark.parametrize(
    ("write", "labels"),
    [
        (write_csv, ["pos", "", " "]),
        (write_csv, [1, "", "nan"]),
        (write_json, ["pos", None, ""]),
        (write_parquet, ["pos", None, None]),
        (write_parquet, [1, None, None]),
        (write_parquet, [1.0, float("nan"), None]),
    ],
)
def test_missing_labels(tmp_path, write, labels):
    with pytest.raises(ValueError, match=r"data\.\w+, column 'mood' has no label in 2 rows: 2, 3"):
        load(write(tmp_path, labels))


def test_several_labels(tmp_path):
    with pytest.raises(ValueError, match=r"row 1: \['a', 'b'\] is a list: give one class per text"):
        load(write_json(tmp_path, [["a", "b"], ["a"], ["b"]]))


@pytest.mark.parametrize(
    ("labels", "label_names", "unknown"),
    [
        (["pos", "mixed", "neg"], ["neg", "pos"], "mixed"),
        ([0, 1, 2], ["neg", "pos"], "2"),
        ([0, 1, -1], ["neg", "pos"], "-1"),
        (["pos", "neg", "pos"], ["LABEL_0", "LABEL_1"], "neg, pos"),
    ],
)
def test_labels_that_training_never_saw(tmp_path, labels, label_names, unknown):
    classes = ", ".join(f"{number}: {name}" for number, name in enumerate(label_names))
    with pytest.raises(ValueError, match=f"'mood' has labels .* does not have: {unknown}. The classes are {classes}"):
        load(write_csv(tmp_path, labels), label_names=label_names)


def test_empty_texts(tmp_path):
    texts = ["a", "", "b", " \n", "c", *[None] * 10]
    Dataset.from_dict(columns([0, 1] * 7 + [0], texts)).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="empty texts in the column 'review', in 12 rows: 2, 4, 6, 7, 8 and more"):
        load(tmp_path / "data.parquet")
    Dataset.from_dict(columns([0, 1], ["a", " "])).to_csv(tmp_path / "data.csv")
    with pytest.raises(ValueError, match="in row 2: remove these rows"):
        load(tmp_path / "data.csv")


def test_texts_that_are_none(tmp_path):
    Dataset.from_dict(columns([0, 1], [3, 4])).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="row 1: 3 in the column 'review' must be a string, but is int"):
        load(tmp_path / "data.parquet")


@pytest.mark.parametrize("write", WRITERS)
def test_columns_that_are_not_there(tmp_path, write):
    source = write(tmp_path, [1, 0, 1])
    with pytest.raises(ValueError, match=r"has no column 'text' and no column 'label', only .*'review', 'mood'"):
        load_labelled_texts(source)


def test_no_header(tmp_path):
    (tmp_path / "data.csv").write_text(f"{'word ' * 50},1\nmore words,0\n")
    with pytest.raises(ValueError, match=r"no column 'text' .* only 'word word .{30}\.\.\.', '1'\.$"):
        load_labelled_texts(tmp_path / "data.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"", "data.csv is empty"),
        ("data.csv", b"text,label\n", "data.csv has no rows"),
        ("data.csv", b"text,label\na,1\nb,c,0\n", "data.csv, row 2, has 3 fields, but the header has 2"),
        ("data.csv", b"text,label\na,b,1\nb,c,0\n", "data.csv, row 1, has 3 fields, but the header has 2"),
        ("data.csv", b'text,label\n"a\nb",1\n\nb\n', "data.csv, row 2, has 1 fields, but the header has 2"),
        ("data.csv", b'text,label\n"a"b,1\n', "Could not read .*data.csv, line 2: ',' expected after '\"'"),
        ("data.csv", b'text,label\na,1\n"b,0\n', "Could not read .*data.csv, line 3: unexpected end of data"),
        (
            "data.csv",
            "text,label\nWörter,1\n".encode("latin-1"),
            "data.csv is not valid UTF-8 text: invalid start byte",
        ),
        ("data.json", b"[]", "Could not read .*data.json"),
        ("data.json", b"{", "Could not read .*data.json"),
        (
            "data.jsonl",
            '{"text": "Wörter", "label": 1}'.encode("latin-1"),
            "data.jsonl is not valid UTF-8 text: invalid start byte",
        ),
        ("data.parquet", b"text", "Could not read .*data.parquet"),
        ("data.xlsx", b"text", r"data.xlsx: the file name must end in \.csv, \.json, "),
        ("pos/1.txt", "Wörter".encode("latin-1"), "1.txt is not valid UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / "given" / name).parent.mkdir(parents=True)
    (tmp_path / "given" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_labelled_texts(tmp_path / "given" / name if "/" not in name else tmp_path / "given")


@pytest.mark.parametrize(
    "source",
    ["nothing.csv", "nowhere/at/all", "./nothing", "data/test.csv", "data/TEST.CSV", "data/a.tsv", "here/test"],
)
def test_files_that_are_not_there(tmp_path, monkeypatch, source):
    """Names with a data file's suffix, or in an existing folder, are not looked up on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "load_dataset", lambda *args, **options: pytest.fail("the Hub was asked"))
    Path("here").mkdir()
    with pytest.raises(ValueError, match=f"File or folder not found: {source}"):
        load_labelled_texts(source)
    with pytest.raises(ValueError, match=f"File or folder not found: {source}"):
        load_unlabelled_texts(source)


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch):
    def load_dataset(*args, **options):
        raise DatasetNotFoundError("Dataset 'some/reviews' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(reading, "load_dataset", load_dataset)
    message = "some/reviews is neither a local file or folder nor readable from the Hub: Dataset 'some/reviews' doesn't"
    with pytest.raises(ValueError, match=message):
        load_labelled_texts("some/reviews")


def test_unlabelled(tmp_path):
    (tmp_path / "lines.txt").write_text("one\n\n two words \r\n\t\nthree\n", encoding="utf-8")
    loaded = load_unlabelled_texts(tmp_path / "lines.txt")
    assert loaded.to_dict() == {"text": ["one", "two words", "three"], "labels": [-100] * 3}
    (tmp_path / "files").mkdir()
    for name, text in {"a": "one\ntext", "b": "", "c": "another"}.items():
        (tmp_path / "files" / f"{name}.txt").write_text(text)
    assert load_unlabelled_texts(tmp_path / "files")["text"][:] == ["one\ntext", "another"]
    loaded = load_unlabelled_texts(write_csv(tmp_path, ["x", "", 2.5]), "review")
    assert loaded.to_dict() == {"text": TEXTS, "labels": [-100] * 3}


def test_unlabelled_without_text(tmp_path):
    (tmp_path / "lines.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"lines\.txt contains no texts"):
        load_unlabelled_texts(tmp_path / "lines.txt")
    with pytest.raises(ValueError, match=r"File not found: .*none\.txt"):
        load_unlabelled_texts(tmp_path / "none.txt")
    Dataset.from_dict({"text": ["a", ""]}).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="empty texts in the column 'text', in row 2"):
        load_unlabelled_texts(tmp_path / "data.parquet")


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        ([["sad", "angry"], [], ["glad"]], [[1, 0, 1], [0, 0, 0], [0, 1, 0]], ["angry", "glad", "sad"]),
        ([[2, 0], [1], []], [[1, 0, 1], [0, 1, 0], [0, 0, 0]], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["a | b", "", "b"], [[1, 1], [0, 0], [0, 1]], ["a", "b"]),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_several_classes_for_each_text(tmp_path, labels, expected, names, suffix):
    if suffix == "csv":
        labels = ["|".join(map(str, own)) if isinstance(own, list) else own for own in labels]
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": labels})
    getattr(rows, "to_json" if suffix == "jsonl" else f"to_{suffix}")(str(tmp_path / f"data.{suffix}"))
    loaded, found = load_labelled_texts(tmp_path / f"data.{suffix}", problem_type="multi_label_classification")
    assert list(loaded["labels"]) == expected
    assert found == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["sad", None], "row 2 has no label: give a list of classes"),
        ([["sad", "sad"], []], r"row 1: \['sad', 'sad'\] has a class twice"),
        ([[0.5], []], "row 1: 0.5 is not a class"),
        ([["sad"], ["sad"]], "only one class, 'sad'"),
    ],
)
def test_several_classes_that_are_wrong(tmp_path, labels, message):
    Dataset.from_dict({"text": ["a", "b"], "label": labels}).to_json(str(tmp_path / "data.jsonl"))
    with pytest.raises(ValueError, match=message):
        load_labelled_texts(tmp_path / "data.jsonl", problem_type="multi_label_classification")


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_labels_that_are_numbers(tmp_path, suffix):
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1.5, -2.0, 3.0]})
    getattr(rows, f"to_{suffix}")(str(tmp_path / f"data.{suffix}"))
    loaded, names = load_labelled_texts(tmp_path / f"data.{suffix}", problem_type="regression")
    assert list(loaded["labels"]) == [1.5, -2.0, 3.0]
    assert names == ["LABEL_0"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1.5", "much"], "row 2: 'much' is not a number"),
        (["1.5", ""], "no number in row 2"),
        (["inf", "1"], "row 1: inf"),
    ],
)
def test_labels_that_are_no_numbers(tmp_path, labels, message):
    Dataset.from_dict({"text": ["a", "b"], "label": labels}).to_csv(str(tmp_path / "data.csv"))
    with pytest.raises(ValueError, match=message):
        load_labelled_texts(tmp_path / "data.csv", problem_type="regression")


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [("single_label_classification", -100), ("multi_label_classification", [-100.0] * 3), ("regression", math.nan)],
)
def test_unknown_labels(tmp_path, problem_type, expected):
    (tmp_path / "texts.txt").write_text("a\nb\n")
    rows = load_unlabelled_texts(tmp_path / "texts.txt", problem_type=problem_type, num_classes=3)
    np.testing.assert_equal(list(rows["labels"]), [expected] * 2)


def test_a_problem_that_is_none(tmp_path):
    Dataset.from_dict({"text": ["a"], "label": ["b"]}).to_json(str(tmp_path / "data.jsonl"))
    with pytest.raises(ValueError, match="problem_type='ranking' must be one of single_label_classification, multi"):
        load_labelled_texts(tmp_path / "data.jsonl", problem_type="ranking")
