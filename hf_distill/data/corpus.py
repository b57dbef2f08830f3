"""Text to train on, from files, folders and the Hub: one column, `text`, with a document in each row."""

import codecs
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

KINDS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The builder of `datasets` that reads a file. A file with another suffix, if it is named, is read as text."""

DATA_SUFFIXES = {*KINDS, ".csv", ".tsv", ".arrow", ".xml", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"}
"""A name that ends so is meant as a file, and never looked for on the Hub."""

LOOKED_AT = 2**16
"""Bytes of a text file that are read before the first step, to see whether it is text."""


def load_corpus(
    source: str | Sequence[str], split: str = "train", streaming: bool = False, **options
) -> Dataset | IterableDataset:
    """Documents, one per row, in the one column `text`. Those with nothing but white space are left out.

    A text file has a document on each line; with `sample_by="paragraph"` blank lines are between documents, and with
    `sample_by="document"` a file is one. JSON lines and Parquet files have a document in each value of `text`.

    Args:
        source: files, patterns such as `"texts/*.txt"`, a folder of files (all that are .txt, .json, .jsonl or
            .parquet) or one that `save_to_disk` wrote; or the name of a data set on the Hub.
        split: which part, as in `datasets.load_dataset`; files are all in `"train"`.
        streaming: read while training, so that the corpus need not fit on the disk.
        **options: for `datasets.load_dataset`, such as `name` and `revision` of a data set on the Hub, or `encoding`
            and `sample_by` of text files.

    Returns:
        A `Dataset`, or an `IterableDataset` if streaming.

    Raises:
        ValueError: if a file is missing, empty or no text, if there is no column `text`, or if there is no document. A
            streamed text file is looked at where it begins.

    Example:
        >>> load_corpus("books/*.txt", sample_by="paragraph")
        >>> load_corpus("Skylion007/openwebtext", streaming=True)
    """
    name = source if isinstance(source, str) else ", ".join(source)
    if isinstance(source, str) and _is_saved(Path(source)):
        dataset = _load_saved(source, split, streaming, options)
    elif files := _find_files([source] if isinstance(source, str) else source):
        dataset = _load_files(files, split, streaming, options)
    else:
        try:
            dataset = load_dataset(source, split=split, streaming=streaming, **options)
        except OSError as error:
            raise not_found(source, error) from error
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{name} has no document: it is empty.")
    if "text" not in first or not isinstance(first["text"], str | None):
        raise ValueError(
            f"{name} has the columns {', '.join(first)} and no strings in a column 'text': rename the one with the "
            f"documents."
        )
    dataset = dataset.select_columns("text").filter(_have_text, batched=True, input_columns="text")
    if next(iter(dataset), None) is None:
        raise ValueError(f"{name} has no document: there is nothing but white space in it.")
    return dataset


def _have_text(texts: list[str | None]) -> list[bool]:
    return [text is not None and not text.isspace() and text != "" for text in texts]


def _is_saved(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _load_saved(folder: str, split: str, streaming: bool, options: dict[str, object]) -> Dataset | IterableDataset:
    saved = load_from_disk(folder, **options)
    if isinstance(saved, dict):
        if split not in saved:
            raise ValueError(f"{folder} has no split {split!r}, only {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _find_files(sources: Sequence[str]) -> list[str]:
    """Those that are meant, in the same order on every machine; none for the name of a data set on the Hub."""
    files = []
    for source in sources:
        if os.path.isdir(source):
            found = sorted(str(path) for path in Path(source).rglob("*") if path.suffix in KINDS and path.is_file())
        else:
            found = sorted(filter(os.path.isfile, glob.glob(source, recursive=True)))
        if not found and not (len(sources) == 1 and may_be_on_the_hub(source)):
            raise ValueError(f"There is no file {source}, nor one with the ending {', '.join(KINDS)} in such a folder.")
        files += found
    return files


def may_be_on_the_hub(source: str) -> bool:
    """Whether it reads as `name` or `owner/name`, and not as a file, or as something in a folder that is here."""
    is_name = re.fullmatch(r"[\w-]+(/[\w.-]+)?", source) is not None
    is_path = Path(source).suffix.lower() in DATA_SUFFIXES or ("/" in source and Path(source).parent.is_dir())
    return is_name and not is_path and not os.path.exists(source)


def not_found(source: str | Sequence[str], error: OSError) -> ValueError:
    return ValueError(f"There is no file or folder {source}, nor could it be read from the Hub: {error}")


def _load_files(files: list[str], split: str, streaming: bool, options: dict[str, Any]) -> Dataset | IterableDataset:
    kinds = {KINDS.get(Path(file).suffix, "text") for file in files}
    if len(kinds) > 1:
        raise ValueError(f"Files of one kind make a corpus, but here are {' and '.join(sorted(kinds))} files: {files}.")
    files = [file for file in files if os.path.getsize(file)]
    if not files:
        raise ValueError("There is no document: all files are empty.")
    (kind,) = kinds
    if kind != "parquet":
        for file in files:
            _check_text(file, options.get("encoding") or "utf-8")
    try:
        return load_dataset(kind, data_files=files, split=split, streaming=streaming, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"Could not read {', '.join(files[:3])} ... as {kind}: {error.__cause__}") from error


def _check_text(file: str, encoding: str) -> None:
    with open(file, "rb") as opened:
        start = opened.read(LOOKED_AT)
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # a character may be cut in two at the end
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no {encoding} text: {error.reason} at byte {error.start}. If it is text in another encoding, "
            f"say so with encoding='latin-1' or the like."
        ) from None
    if "\0" in text:
        raise ValueError(f"{file} is no text: there are zero bytes in it.")
