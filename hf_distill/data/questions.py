"""Loads questions with contexts and answers, with or without labels, from SQuAD files, other files and the Hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from hf_distill.data.reading import read_rows, read_text
from hf_distill.data.showing import listed_rows, short

FEATURES = Features(
    {
        "question": Value("string"),
        "context": Value("string"),
        "answers": List(Value("string")),
        "starts": List(Value("int64")),
    }
)

SQUAD = {"question": "question", "context": "context", "answers": "answers"}
"""Names of the fields in files with SQuAD's nested format."""

Row = Mapping[str, Any]


def load_questions(
    source: str | Path,
    question_column: str = "question",
    context_column: str = "context",
    answers_column: str = "answers",
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads questions, each with a context and its answers in that context.

    Args:
        source: one of: a .json file in SQuAD's format, version 1.1 or 2.0 (`data`, `paragraphs`, `qas`); a .json file
            with a list of rows, a .jsonl or .parquet file; a folder that `datasets.load_dataset` reads; a Hub name.
        question_column: column with the questions. Not used for files in SQuAD's format.
        context_column: column with the contexts. Not used for files in SQuAD's format.
        answers_column: column with the answers, `{"text": [...], "answer_start": [...]}` or a list of
            `{"text": ..., "answer_start": ...}`. `answer_start` counts characters from 0. A question without answers
            cannot be answered from its context. Not used for files in SQuAD's format.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns `question`, `context`, `answers` (texts) and `starts` (position of each answer in
        the context, in characters). Both lists are empty if the question cannot be answered from the context.

    Raises:
        ValueError: if a file is missing, empty or unreadable; if a field is missing; if a question or a context is
            empty; or if an answer is empty or is not in the context at its start. Rows are counted from 1; in SQuAD's
            format each question is a row.

    Example:
        >>> train = load_questions("train-v2.0.json")
        >>> validation = load_questions("rajpurkar/squad_v2", split="validation")
        >>> train[0]["context"][train[0]["starts"][0] :].startswith(train[0]["answers"][0])
        True
    """
    columns = {"question": question_column, "context": context_column, "answers": answers_column}
    return _checked(source, columns, split, config_name, _answers)


def load_unlabelled_questions(
    source: str | Path,
    question_column: str = "question",
    context_column: str = "context",
    split: str = "train",
    config_name: str | None = None,
) -> Dataset:
    """Loads questions with their contexts but without answers, for training on the teacher's predictions alone.

    Args:
        source: as in `load_questions`, or a .csv file. Answers are ignored.
        question_column: column with the questions.
        context_column: column with the contexts.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.

    Returns:
        A dataset with the columns of `load_questions`. `answers` and `starts` are None, which means no label.

    Raises:
        ValueError: as `load_questions`, apart from answers.

    Example:
        >>> questions = load_unlabelled_questions("questions.jsonl", context_column="paragraph")
    """
    columns = {"question": question_column, "context": context_column}
    return _checked(source, columns, split, config_name, lambda row: (None, None))


def _checked(source: str | Path, columns: dict[str, str], split: str, config_name: str | None, answers) -> Dataset:
    good: dict[str, list] = {name: [] for name in FEATURES}
    bad: list[tuple[int, str]] = []
    for number, (row, where) in enumerate(_rows(source, columns, split, config_name), start=1):
        try:
            for name in ("question", "context"):
                _check_text(row[name], columns[name])
            texts, starts = answers(row)
        except _BadRowError as error:
            bad.append((number, f"{source}, row {number}{where}: {error}"))
            continue
        for name, value in zip(FEATURES, (row["question"], row["context"], texts, starts), strict=True):
            good[name].append(value)
    if bad:
        others = [number for number, _ in bad[1:]]
        more = f" More bad rows: {listed_rows(others)}." if others else ""
        raise ValueError(f"{bad[0][1]}{more}")
    if not good["question"]:
        raise ValueError(f"{source} has no questions: give a dataset with at least one row.")
    return Dataset.from_dict(good, FEATURES)


class _BadRowError(ValueError):
    pass


def _rows(
    source: str | Path, columns: dict[str, str], split: str, config_name: str | None
) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows with canonical names; and their ids, as words for an error."""
    path = Path(source)
    if path.suffix == ".csv" and "answers" in columns:
        raise ValueError(f"Cannot read {source}: a CSV file has no lists of answers. Save it as JSON or Parquet.")
    found: Iterator[Row]
    if path.suffix in (".json", ".jsonl") and path.is_file():
        found, is_squad = _read_json(path)
        columns = SQUAD if is_squad else columns
    else:
        found = iter(read_rows(source, list(columns.values()), split, config_name))
    for number, row in enumerate(found, start=1):
        where = f" (id {row['id']})" if row.get("id") is not None else ""
        if missing := [column for column in columns.values() if column not in row]:
            raise ValueError(
                f"{source}, row {number}{where}, has no field {' and no field '.join(map(repr, missing))}, only "
                f"{', '.join(map(repr, row))}."
            )
        yield (
            {name: row[column] for name, column in columns.items()} | {"is_impossible": row.get("is_impossible")},
            where,
        )


def _read_json(file: Path) -> tuple[Iterator[Row], bool]:
    """The rows of a file, and whether they were in SQuAD's nested format."""
    text = read_text(file).removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{file} is empty.")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = [_parse_line(line, f"{file}, line {number}") for number, line in enumerate(text.splitlines(), 1)]
        content = [row for row in content if row is not None]
    if isinstance(content, dict):
        content = content.get("data", [content])
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{file} must be a list of rows, or a file in SQuAD's format with the field 'data'.")
    if any("paragraphs" in row for row in content):
        return _squad_rows(content, file), True
    return iter(content), False


def _parse_line(line: str, where: str) -> Any:
    try:
        return json.loads(line) if line.strip() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"Could not read {where}: {error}. Give a JSON file, or one row in JSON per line.") from None


def _squad_rows(articles: list[dict], file: Path) -> Iterator[Row]:
    for number, article in enumerate(articles, start=1):
        for paragraph in _listed(article, "paragraphs", f"{file}, article {number}"):
            for question in _listed(paragraph, "qas", f"{file}, a paragraph of article {number}"):
                yield {name: value for name, value in paragraph.items() if name == "context"} | question


def _listed(parent: dict, field: str, where: str) -> list[dict]:
    found = parent.get(field)
    if not isinstance(found, list) or not all(isinstance(own, dict) for own in found):
        raise ValueError(f"{where}, has no list {field!r}: SQuAD's format is data, paragraphs, qas.")
    return found


def _check_text(text: Any, column: str) -> None:
    if not isinstance(text, str):
        raise _BadRowError(f"{column!r} must be a string, but is {short(text)}.")
    if not text.strip():
        raise _BadRowError(f"{column!r} is empty. Remove the row, or fill it in.")


def _answers(row: Row) -> tuple[list[str], list[int]]:
    """Texts and starts of the answers of a row."""
    answers = row["answers"]
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
    elif isinstance(answers, list) and all(isinstance(own, Mapping) for own in answers):
        texts, starts = ([own.get(name) for own in answers] for name in ("text", "answer_start"))
    else:
        texts = starts = None
    if not isinstance(texts, Sequence) or not isinstance(starts, Sequence) or len(texts) != len(starts):
        raise _BadRowError(
            f"the answers are {short(answers)}: they must be {{'text': [...], 'answer_start': [...]}} with lists of "
            f"the same length, which are empty if the question has no answer."
        )
    for text, start in zip(texts, starts, strict=True):
        _check_answer(text, start, row["context"])
    if row["is_impossible"] is not None and row["is_impossible"] != (not texts):
        said = "is_impossible is true, but there are answers" if texts else "is_impossible is false without an answer"
        raise _BadRowError(f"{said}: correct one of the two.")
    return list(texts), list(starts)


def _check_answer(text: Any, start: Any, context: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise _BadRowError(f"an answer is {short(text)}: it must be a part of the context, and not be empty.")
    if not isinstance(start, int) or isinstance(start, bool):
        raise _BadRowError(f"'answer_start' of {short(text)} is {short(start)}: it must be a number of characters.")
    if start < 0 or context[start : start + len(text)] != text:
        there = context.find(text)
        advice = "does not occur in it" if there < 0 else f"first occurs at {there}"
        raise _BadRowError(f"the answer {short(text)} is not in the context at {start}: it {advice}.")
