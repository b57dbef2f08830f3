"""Tagged words from JSON, Parquet, CoNLL files and spans, and errors that name the row."""

import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill.data.tagged_words import load_tagged_words, load_untagged_words

WORDS = [["Jane", "Roe", "saw", "Rome", "."], ["Nobody", "did", "."], ["Rome", "Bonn"]]
TAGS = [["B-PER", "I-PER", "O", "B-LOC", "O"], ["O", "O", "O"], ["B-LOC", "B-LOC"]]
NAMES = ["O", "B-LOC", "B-PER", "I-PER"]
NUMBERS = [[2, 3, 0, 1, 0], [0, 0, 0], [1, 1]]
SPANS = [
    [{"start": 0, "end": 8, "label": "PER"}, {"start": 13, "end": 17, "label": "LOC"}],
    [],
    [{"start": 5, "end": 9, "label": "LOC"}, {"start": 0, "end": 4, "label": "LOC"}],
]
TEXTS = [" ".join(words) for words in WORDS]
CANONICAL = {
    "text": TEXTS,
    "starts": [[0, 5, 9, 13, 18], [0, 7, 11], [0, 5]],
    "ends": [[4, 8, 12, 17, 19], [6, 10, 12], [4, 9]],
    "labels": NUMBERS,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def save(folder, name="data.jsonl", **columns):
    if name.endswith(".parquet"):
        Dataset.from_dict(columns).to_parquet(folder / name)
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / name).write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]", encoding="utf-8")
    return folder / name


def save_conll(folder, content, name="data.conll"):
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
def test_words_and_tags(tmp_path, name):
    rows, names = load_tagged_words(save(tmp_path, name, words=WORDS, tags=TAGS), "words", "tags")
    assert names == rows.features["labels"].feature.names == NAMES
    assert rows.to_dict() == CANONICAL


def test_numbers_with_names(tmp_path):
    """Names of a `ClassLabel` keep their order; -100 is an unknown tag."""
    own = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=own))})
    numbers = [[1, 2, 0, 3, 0], [0, 0, 0], [3, 3]]
    Dataset.from_dict({"tokens": WORDS, "ner_tags": numbers}, features=features).to_parquet(tmp_path / "a.parquet")
    rows, names = load_tagged_words(tmp_path / "a.parquet")
    assert (names, rows["labels"][:]) == (own, numbers)
    rows, names = load_tagged_words(tmp_path / "a.parquet", label_names=NAMES)
    assert (names, rows["labels"][:]) == (NAMES, NUMBERS)
    unnamed = [f"LABEL_{number}" for number in range(5)]
    assert load_tagged_words(tmp_path / "a.parquet", label_names=unnamed)[0]["labels"][:] == numbers


def test_numbers_without_names(tmp_path):
    file = save(tmp_path, tokens=WORDS, ner_tags=[[2, 3, 0, -100, 0], *NUMBERS[1:]])
    rows, names = load_tagged_words(file)
    assert names == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert rows["labels"][0] == [2, 3, 0, -100, 0]
    assert load_tagged_words(file, label_names=NAMES)[1] == NAMES
    with pytest.raises(
        ValueError, match=r"row 1: the tag 3 is unknown\. The tags of the training data or of the model"
    ):
        load_tagged_words(file, label_names=NAMES[:3])


@pytest.mark.parametrize("name", ["data.conll", "data.bio", "data.txt"])
def test_conll(tmp_path, name):
    columns = [" NNP x " if name != "data.bio" else "\t"] * 2
    lines = ["\ufeff-DOCSTART- -X- O", ""]
    for words, tags in zip(WORDS, TAGS, strict=True):
        lines += [f"{word}{columns[0]}{tag}" for word, tag in zip(words, tags, strict=True)] + ["", " "]
    rows, names = load_tagged_words(save_conll(tmp_path, "\n".join(lines), name))
    assert names == NAMES
    assert rows.to_dict() == CANONICAL
    untagged = load_untagged_words(tmp_path / name)
    assert untagged.to_dict() == {**CANONICAL, "labels": [[-100] * len(own) for own in NUMBERS]}


def test_spans(tmp_path):
    rows, names = load_tagged_words(save(tmp_path, text=TEXTS, entities=SPANS), spans_column="entities")
    assert names == NAMES
    assert rows.to_dict() == CANONICAL


def test_spans_as_a_dict_of_lists(tmp_path):
    """As older versions of `datasets` save a sequence of dicts."""
    spans = [{key: [own[key] for own in row] for key in ("start", "end", "label")} for row in SPANS]
    file = save(tmp_path, "data.parquet", text=TEXTS, entities=spans)
    assert load_tagged_words(file, spans_column="entities")[0].to_dict() == CANONICAL


def test_words_of_texts_with_spans(tmp_path):
    """Words end at marks and at the edges of spans, also inside a run of letters and around spaces."""
    spans = [[{"start": 0, "end": 4, "label": "CITY"}, {"start": 10, "end": 18, "label": "ORG"}]]
    rows, names = load_tagged_words(
        save(tmp_path, text=["Rome-based, A&B Inc, Parisien"], spans=spans), spans_column="spans"
    )
    words = [rows["text"][0][start:end] for start, end in zip(rows["starts"][0], rows["ends"][0], strict=True)]
    assert words == ["Rome", "-", "based", ",", "A", "&", "B", "In", "c", ",", "Parisien"]
    assert [names[label] for label in rows["labels"][0]] == [
        *("B-CITY", "O", "O", "B-ORG", "I-ORG", "I-ORG", "I-ORG", "I-ORG", "O", "O", "O")
    ]


def test_sorted_names(tmp_path):
    tags = [["I-ORG", "B-LOC", "O", "B-ORG", "I-LOC"], ["I-A", "O", "O"], ["B-ORG", "O"]]
    names = load_tagged_words(save(tmp_path, tokens=WORDS, ner_tags=tags))[1]
    assert names == ["O", "I-A", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    plain = [["NN", "VB", "-LRB-", "S-x", "NN"], ["NN"] * 3, ["VB", "."]]
    names = load_tagged_words(save(tmp_path, "plain.jsonl", tokens=WORDS, ner_tags=plain))[1]
    assert names == ["-LRB-", ".", "NN", "S-x", "VB"]


def test_untagged(tmp_path):
    unknown = [[-100] * len(own) for own in NUMBERS]
    words = save(tmp_path, tokens=WORDS)
    assert load_untagged_words(words).to_dict() == {**CANONICAL, "labels": unknown}
    named = load_untagged_words(words, label_names=NAMES)
    assert (named["labels"][:], named.features["labels"].feature.names) == (unknown, NAMES)
    texts = save(tmp_path, "texts.jsonl", text=["Jane (U.S.)", "猫 a"])
    assert load_untagged_words(texts)["ends"][:] == [[4, 6, 10, 11], [1, 3]]
    assert load_untagged_words(texts, spans_column="entities")["ends"][0] == [4, 6, 7, 8, 9, 10, 11]
    with pytest.raises(
        ValueError, match=r"has neither a column 'a' with words nor a column 'b' with texts, only 'text'"
    ):
        load_untagged_words(texts, "a", "b")
    with pytest.raises(ValueError, match=r"empty texts in the column 'text', in row 2"):
        load_untagged_words(save(tmp_path, "empty.jsonl", text=["a", " "]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": [["a"], ["b", " "]], "ner_tags": [["O"], ["O", "B-X"]]}, r"row 2: word 2 is empty"),
        ({"tokens": [["a"], []], "ner_tags": [["B-X"], []]}, r"row 2: there are no words"),
        ({"tokens": [["a"], ["b"]], "ner_tags": [["O"], ["O", "B-X"]]}, r"row 2 has 1 words, but 2 tags"),
        ({"tokens": [["a"], ["b"]], "ner_tags": [["O"], None]}, r"row 2 has 1 words, but 0 tags"),
        ({"tokens": ["a b"], "ner_tags": [["O"]]}, r"row 1: 'a b' in the column 'tokens' must be a list of strings"),
        ({"tokens": [["a"], ["b"]], "ner_tags": [["O"], [""]]}, r"row 2: '', the tag of 'b', must be a name or a"),
        ({"tokens": [["a"], ["b"]], "ner_tags": [[1.0], [0.0]]}, r"row 1: 1.0, the tag of 'a', must be a name or a"),
        ({"tokens": [["a", "b"]], "ner_tags": [["O", "O"]]}, r"has only the tag O: training needs at least two"),
        ({"tokens": [["a", "b"]], "ner_tags": [[0, -3]]}, r"row 1: the tag -3 is negative"),
        (
            {"tokens": [["a"], ["b"]], "ner_tags": [["B-X"], ["X-PER"]]},
            r"row 2: the tag 'X-PER' is neither O nor begins",
        ),
        (
            {"tokens": [["a"], ["b"]], "ner_tags": [["B-X"], ["S-X"]]},
            r"row 2: the tag 'S-X' .*: write BIO tags, with B-",
        ),
        ({"tokens": [["a"], ["b"]], "ner_tags": [["B-X"], ["PER"]]}, r"row 2: the tag 'PER' is neither O nor begins"),
        ({"tokens": [["a"]], "tags": [["O"]]}, r"no column 'ner_tags', only 'tokens', 'tags'. Words and tags are read"),
    ],
)
def test_bad_words(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_tagged_words(save(tmp_path, **columns))
    assert str(tmp_path / "data.jsonl") in str(raised.value)


def test_unknown_tags(tmp_path):
    with pytest.raises(ValueError, match=r"row 2: the tag 'B-LOC' is unknown. .* are O, B-PER."):
        load_tagged_words(
            save(tmp_path, tokens=[["a"], ["b"]], ner_tags=[["O"], ["B-LOC"]]), label_names=["O", "B-PER"]
        )


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 5, "end": 5, "label": "X"}, r"row 2: the span 5-5 \(X\) must be within the text, which has 11"),
        ({"start": 5, "end": 12, "label": "X"}, r"row 2: the span 5-12 \(X\) must be within the text"),
        ({"start": -1, "end": 3, "label": "X"}, r"row 2: the span -1-3 \(X\) must be within the text"),
        ({"start": 5, "end": 6, "label": "X"}, r"row 2: the span 5-6 \(X\) has no words, only ' '"),
        ({"start": 2, "end": 8, "label": "X"}, r"row 2: the spans 0-3 \(A\) and 2-8 \(X\) overlap: keep one"),
        ({"start": 6, "end": 8, "label": " "}, r"row 2: the label of .* must be a name"),
        ({"start": 6.5, "end": 8, "label": "X"}, r"row 2: start and end of .* must be integers"),
        ({"start": 6, "end": 8}, r"row 2: .* must be a span, \{\"start\": 0"),
    ],
)
def test_bad_spans(tmp_path, span, message):
    features = "text", "entities"
    first = {"start": 0, "end": 3, "label": "A"}
    rows = [("a b", []), ("some, words", [first if span.get("start") != -1 else {**first, "end": 2}, span])]
    if "label" not in span:
        rows[1] = (rows[1][0], [span])
    lines = [json.dumps(dict(zip(features, row, strict=True))) for row in rows]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as raised:
        load_tagged_words(tmp_path / "data.jsonl", spans_column="entities")
    assert str(tmp_path / "data.jsonl") in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a B-X\nb O\n\nc\n", r"line 4: 'c' has no tag: write the word first and its tag last"),
        ("a B-X\n\nb O\nc X-Y\n", r"sentence at line 3: the tag 'X-Y' is neither O nor begins"),
        ("\n\n-DOCSTART- O\n", r"has no sentences: write one word per line"),
        ("", r"has no sentences"),
    ],
)
def test_bad_conll(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_tagged_words(save_conll(tmp_path, content))
    assert str(tmp_path / "data.conll") in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"File not found: .*missing\.conll"):
        load_tagged_words(tmp_path / "missing.conll")
    (tmp_path / "data.csv").write_text("tokens,ner_tags\na,O\n")
    with pytest.raises(ValueError, match=r"is a \.csv file, which has no lists: save words and tags as \.jsonl"):
        load_tagged_words(tmp_path / "data.csv")
    (tmp_path / "latin.conll").write_bytes("Café O\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.conll is not valid UTF-8"):
        load_tagged_words(tmp_path / "latin.conll")
