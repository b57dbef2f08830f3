"""Text from files, folders and the Hub, and errors for files without text."""

from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hf_distill import load_corpus
from hf_distill.data import corpus

TEXTS = ["one", "two words", "drei Wörter hier"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_lines(folder):
    (folder / "corpus.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder / "corpus.txt", {}


def write_lines_with_blanks_between(folder):
    (folder / "corpus.raw").write_bytes("\r\n \t\r\n\r\n".join(TEXTS).encode())
    return folder / "corpus.raw", {}


def write_paragraphs(folder):
    (folder / "corpus.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return folder / "corpus.txt", {"sample_by": "paragraph"}


def write_latin(folder):
    (folder / "corpus.txt").write_text("\n".join(TEXTS), encoding="latin-1")
    return folder / "corpus.txt", {"encoding": "latin-1"}


def write_folder_of_files(folder):
    for index, text in enumerate(TEXTS):
        (folder / f"{index}.txt").write_text(text, encoding="utf-8")
    (folder / "3.txt").touch()
    (folder / "README.md").write_text("not part of it")
    return folder, {"sample_by": "document"}


def write_json_lines(folder):
    Dataset.from_dict({"id": [1, 2, 3], "text": TEXTS}).to_json(folder / "corpus.jsonl")
    return folder / "*.jsonl", {}


def write_parquet(folder):
    for index, text in enumerate(TEXTS):
        Dataset.from_dict({"text": [text]}).to_parquet(folder / f"{index}.parquet")
    return folder, {}


def save(folder):
    Dataset.from_dict({"text": [None, *TEXTS], "id": [1, 2, 3, 4]}).save_to_disk(folder / "saved")
    return folder / "saved", {}


def save_splits(folder):
    splits = {"train": Dataset.from_dict({"text": TEXTS}), "test": Dataset.from_dict({"text": ["no"]})}
    DatasetDict(splits).save_to_disk(folder / "saved")
    return folder / "saved", {}


SOURCES = [
    write_lines,
    write_lines_with_blanks_between,
    write_paragraphs,
    write_latin,
    write_folder_of_files,
    write_json_lines,
    write_parquet,
    save,
    save_splits,
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", SOURCES)
def test_documents(tmp_path, write, streaming):
    (tmp_path / "made").mkdir()
    source, options = write(tmp_path / "made")
    corpus = load_corpus(str(source), streaming=streaming, **options)
    assert list(corpus) == [{"text": text} for text in TEXTS]
    assert isinstance(corpus, datasets.IterableDataset if streaming else Dataset)


def test_several_files(tmp_path):
    for name, text in zip("abc", TEXTS, strict=True):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus([str(tmp_path / "c.txt"), str(tmp_path / "[ab].txt")])
    assert corpus["text"][:] == [TEXTS[2], TEXTS[0], TEXTS[1]]


def test_part_of_a_corpus(tmp_path):
    source, _ = write_lines(tmp_path)
    assert load_corpus(str(source), split="train[:2]")["text"][:] == TEXTS[:2]


def test_name_on_the_hub(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(corpus, "load_dataset", load_dataset)
    assert load_corpus("Skylion007/openwebtext", streaming=True, revision="main")["text"][:] == TEXTS
    assert asked == [(("Skylion007/openwebtext",), {"split": "train", "streaming": True, "revision": "main"})]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "all files are empty"),
        ("white.txt", b" \n\t\n", "no documents, only white space"),
        ("null.jsonl", b'{"text": null}\n{"text": " "}\n', "no documents, only white space"),
        ("binary.txt", bytes(range(256)), r"binary.txt is not valid utf-8 text: invalid start byte at byte 128"),
        ("zeros.txt", b"ab\0\0c", "zeros.txt is not a text file: it contains zero bytes"),
        ("wide.txt", "text".encode("utf-16"), "is not valid utf-8 text: .*pass it, for example encoding='latin-1'"),
        ("other.jsonl", b'{"content": "a"}\n', "no column 'text' with strings, only the columns content"),
        ("numbers.jsonl", b'{"text": 1}\n', "no column 'text' with strings"),
    ],
)
def test_files_without_text(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(str(tmp_path / name), streaming=streaming)


def test_a_broken_character_far_into_a_file(tmp_path):
    (tmp_path / "far.txt").write_bytes(b"text\n" * 20_000 + b"\xff\n")
    with pytest.raises(ValueError, match=r"Could not read .*far.txt ... as text: 'utf-8' codec can't decode byte 0xff"):
        load_corpus(str(tmp_path / "far.txt"))


def test_a_character_cut_in_two_where_the_look_at_a_file_ends(tmp_path):
    text = "a" * (corpus.LOOKED_AT - 1) + "ö"
    (tmp_path / "cut.txt").write_text(text, encoding="utf-8")
    assert load_corpus(str(tmp_path / "cut.txt"))["text"][:] == [text]


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach 'some/text' on the Hub")

    monkeypatch.setattr(corpus, "load_dataset", load_dataset)
    message = "some/text is neither a local file or folder nor readable from the Hub: Couldn't reach"
    with pytest.raises(ValueError, match=message):
        load_corpus("some/text")


@pytest.mark.parametrize(
    "source",
    ["nothing.txt", "*.parquet", "./nothing", "a/b/c", ["a", "b"], "data/text.TXT", "data/text.csv", "here/text"],
)
def test_no_such_file(tmp_path, monkeypatch, source):
    """Names with a data file's suffix, or in an existing folder, are not looked up on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus, "load_dataset", lambda *args, **options: pytest.fail("the Hub was asked"))
    Path("here").mkdir()
    with pytest.raises(ValueError, match="not found: give a file"):
        load_corpus(source)


def test_a_folder_with_nothing_to_read(tmp_path):
    (tmp_path / "text.docx").touch()
    with pytest.raises(
        ValueError, match=r"not found: give a file, a pattern, or a folder that contains .txt, .json, .jsonl, .parquet"
    ):
        load_corpus(str(tmp_path))


def test_files_of_two_kinds(tmp_path):
    write_lines(tmp_path)
    write_json_lines(tmp_path)
    with pytest.raises(ValueError, match="found json and text files"):
        load_corpus(str(tmp_path))


def test_no_such_split(tmp_path):
    source, _ = save_splits(tmp_path)
    with pytest.raises(ValueError, match="has no split 'validation', only train, test"):
        load_corpus(str(source), split="validation")
