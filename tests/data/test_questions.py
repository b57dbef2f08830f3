"""Questions from every kind of file, and errors for bad rows."""

import json

import datasets
import pytest
from datasets import Dataset

from hf_distill.data.questions import load_questions, load_unlabelled_questions

CONTEXT = "Ada Lovelace was born in London in 1815."
ROWS = [
    {"question": "Who?", "context": CONTEXT, "answers": ["Ada Lovelace", "Ada"], "starts": [0, 0]},
    {"question": "Where?", "context": CONTEXT, "answers": ["London"], "starts": [25]},
    {"question": "Why?", "context": "Nobody knows, naïve or not.", "answers": [], "starts": []},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def flat_rows(as_list=False):
    for number, row in enumerate(ROWS):
        answers = {"text": row["answers"], "answer_start": row["starts"]}
        if as_list:
            answers = [dict(zip(answers, pair, strict=True)) for pair in zip(*answers.values(), strict=True)]
        yield {"id": f"q{number}", "question": row["question"], "context": row["context"], "answers": answers}


def squad(version="v2.0", **changes):
    """The rows in SQuAD's format: one article with two paragraphs. `changes` are to the first question."""
    questions = list(flat_rows(as_list=True))
    for question in questions:
        del question["context"]
        if version == "v2.0":
            question["is_impossible"] = not question["answers"]
    questions[2]["plausible_answers"] = [{"text": "Nobody", "answer_start": 0}]
    questions[0] |= changes
    paragraphs = [{"context": CONTEXT, "qas": questions[:2]}, {"context": ROWS[2]["context"], "qas": questions[2:]}]
    return {"version": version, "data": [{"title": "Ada", "paragraphs": paragraphs}]}


def write(file, content):
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_squad_files(tmp_path):
    for version in ("1.1", "v2.0"):
        assert load_questions(write(tmp_path / f"{version}.json", squad(version))).to_list() == ROWS


def test_flat_files(tmp_path):
    rows, as_list = list(flat_rows()), list(flat_rows(as_list=True))
    files = [
        write(tmp_path / "list.json", rows),
        write(tmp_path / "data.json", {"version": "1", "data": as_list}),
        write(tmp_path / "lines.jsonl", "\n".join(map(json.dumps, as_list)) + "\n\n"),
        write(tmp_path / "lines.json", "\n".join(map(json.dumps, rows))),
    ]
    (tmp_path / "folder").mkdir()
    for name, own in {"dict": rows, "list": as_list, "folder/train": rows}.items():
        Dataset.from_list(own).to_parquet(files.append(tmp_path / f"{name}.parquet") or files[-1])
    for file in [*files, tmp_path / "folder"]:
        assert load_questions(file).to_list() == ROWS, file
    one = write(tmp_path / "one.jsonl", rows[0])
    assert load_questions(one).to_list() == ROWS[:1]


def test_own_columns_and_no_labels(tmp_path):
    rows = [{"ask": row["question"], "text": row["context"]} for row in ROWS]
    expected = [row | {"answers": None, "starts": None} for row in ROWS]
    csv = "ask,text\n" + "\n".join(f'{row["ask"]},"{row["text"]}"' for row in rows)
    for file in (write(tmp_path / "rows.json", rows), write(tmp_path / "rows.csv", csv)):
        assert load_unlabelled_questions(file, "ask", "text").to_list() == expected
    assert load_unlabelled_questions(write(tmp_path / "squad.json", squad())).to_list() == expected
    rows = [{"ask": row.pop("question"), "replies": row.pop("answers"), **row} for row in flat_rows()]
    assert load_questions(write(tmp_path / "own.json", rows), "ask", answers_column="replies").to_list() == ROWS


BAD = {
    "empty question": ({"question": " "}, r"row 1 \(id q0\): 'question' is empty"),
    "question that is no text": ({"question": None}, "row 1 .*: 'question' must be a string, but is None"),
    "answer elsewhere": (
        {"answers": [{"text": "London", "answer_start": 24}]},
        "row 1 .*: the answer 'London' is not in the context at 24: it first occurs at 25",
    ),
    "answer nowhere": ({"answers": [{"text": "Paris", "answer_start": 0}]}, "at 0: it does not occur in it"),
    "start before the context": ({"answers": [{"text": "5.", "answer_start": -2}]}, "not in the context at -2"),
    "start that is no number": ({"answers": [{"text": "Ada", "answer_start": "0"}]}, "'0': it must be a number"),
    "no start": ({"answers": [{"text": "Ada"}]}, "'answer_start' of 'Ada' is None"),
    "empty answer": ({"answers": [{"text": "", "answer_start": 0}]}, "an answer is '': it must be a part"),
    "answers that are a text": ({"answers": "Ada"}, r"the answers are 'Ada': they must be \{'text': \[...\]"),
    "answers of two lengths": ({"answers": {"text": ["Ada"], "answer_start": []}}, "lists of the same length"),
    "answered but impossible": ({"is_impossible": True}, "is_impossible is true, but there are answers"),
    "neither answered nor impossible": ({"answers": []}, "is_impossible is false without an answer"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_rows(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"bad.json, .*{message}"):
        load_questions(write(tmp_path / "bad.json", squad(**changes)))


def test_several_bad_rows(tmp_path):
    rows = [{**row, "question": ""} if number != 1 else row for number, row in enumerate(flat_rows())]
    with pytest.raises(ValueError, match=r"row 1 .*More bad rows: row 3"):
        load_questions(write(tmp_path / "bad.json", rows))


FILES = {
    "none.json": (None, "not found"),
    "empty.json": ("", "is empty"),
    "no_rows.json": ("[]", "has no questions"),
    "texts.json": ('["a", "b"]', "must be a list of rows, or a file in SQuAD's format"),
    "number.json": ("5", "must be a list of rows"),
    "broken.jsonl": ('{"question": "a"}\n{"question', "line 2: .* one row in JSON per line"),
    "latin.json": ("\udce9", "not valid UTF-8"),
    "fields.json": ('[{"question": "a", "id": 7}]', r"row 1 \(id 7\), has no field 'context' and no field 'answers'"),
    "article.json": ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "a paragraph of article 1, has no list 'qas'"),
    "table.csv": ("question,context,answers\na,b,b", "a CSV file has no lists of answers. Save it as JSON or Parquet"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files(tmp_path, name):
    content, message = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load_questions(tmp_path / name)
