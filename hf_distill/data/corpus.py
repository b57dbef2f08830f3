"""Loads a corpus from files, folders or the Hub: one column, `text`, with one document per row."""

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
"""Builder of `datasets` by file suffix. A file with any other suffix that is given by name is read as text."""

DATA_SUFFIXES = {*KINDS, ".csv", ".tsv", ".arrow", ".xml", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"}
"""Suffixes that mark a file: such a name is never looked up on the Hub."""

LOOKED_AT = 2**16
"""Bytes read from the start of a text file to check that it is text."""


def load_corpus(
    source: str | Sequence[str], split: str = "train", streaming: bool = False, **options
) -> Dataset | IterableDataset:
    """Loads documents into one column, `text`, with one document per row. Blank documents are left out.

    In a text file each line is a document. With `sample_by="paragraph"` documents are separated by blank lines, and
    with `sample_by="document"` each file is one document. In JSON lines and Parquet files, each value of the column
    `text` is a document.

    Args:
        source: files, patterns such as `"texts/*.txt"`, a folder (its .txt, .json, .jsonl and .parquet files are read),
            a folder written by `save_to_disk`, or a dataset name on the Hub.
        split: split to load, as in `datasets.load_dataset`. All files belong to `"train"`.
        streaming: read the corpus during training, so that it need not fit on the disk.
        **options: passed to `datasets.load_dataset`, such as `name` and `revision` of a Hub dataset, or `encoding` and
            `sample_by` of text files.

    Returns:
        A `Dataset`, or an `IterableDataset` if streaming.

    Raises:
        ValueError: if a file is missing, empty or not text, if there is no column `text`, or if there are no documents.
            When streaming, only the first 64 KiB of a text file are checked.

    Example:
        >>> load_corpus("books/*.txt", sample_by="paragraph")
        >>> load_corpus("Skylion007/openwebtext", streaming=True)
    """
    name = source if isinstance(source, str) else ", ".join(source)
    dataset = load_rows(source, split, streaming, **options)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{name} is empty: it contains no documents.")
    if "text" not in first or not isinstance(first["text"], str | None):
        raise ValueError(
            f"{name} has no column 'text' with strings, only the columns {', '.join(first)}: rename the column with "
            f"the documents to 'text'."
        )
    dataset = dataset.select_columns("text").filter(_have_text, batched=True, input_columns="text")
    if next(iter(dataset), None) is None:
        raise ValueError(f"{name} contains no documents, only white space.")
    return dataset


def load_rows(
    source: str | Sequence[str], split: str = "train", streaming: bool = False, **options
) -> Dataset | IterableDataset:
    """Loads rows with any columns. The arguments are those of `load_corpus`."""
    if isinstance(source, str) and _is_saved(Path(source)):
        return _load_saved(source, split, streaming, options)
    if files := _find_files([source] if isinstance(source, str) else source):
        return _load_files(files, split, streaming, options)
    try:
        return load_dataset(source, split=split, streaming=streaming, **options)
    except OSError as error:
        raise not_found(source, error) from error


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
    """Expands files, patterns and folders, in the same order on every machine; empty for a Hub name."""
    files = []
    for source in sources:
        if os.path.isdir(source):
            found = sorted(str(path) for path in Path(source).rglob("*") if path.suffix in KINDS and path.is_file())
        else:
            found = sorted(filter(os.path.isfile, glob.glob(source, recursive=True)))
        if not found and not (len(sources) == 1 and may_be_on_the_hub(source)):
            raise ValueError(
                f"{source} not found: give a file, a pattern, or a folder that contains {', '.join(KINDS)} files."
            )
        files += found
    return files


def may_be_on_the_hub(source: str) -> bool:
    """True for `name` or `owner/name`, unless it looks like a file or lies in an existing folder."""
    is_name = re.fullmatch(r"[\w-]+(/[\w.-]+)?", source) is not None
    is_path = Path(source).suffix.lower() in DATA_SUFFIXES or ("/" in source and Path(source).parent.is_dir())
    return is_name and not is_path and not os.path.exists(source)


def not_found(source: str | Sequence[str], error: OSError) -> ValueError:
    return ValueError(f"{source} is neither a local file or folder nor readable from the Hub: {error}")


def _load_files(files: list[str], split: str, streaming: bool, options: dict[str, Any]) -> Dataset | IterableDataset:
    kinds = {KINDS.get(Path(file).suffix, "text") for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"Expected files of one kind, but found {' and '.join(sorted(kinds))} files: {files}. Load each kind alone."
        )
    files = [file for file in files if os.path.getsize(file)]
    if not files:
        raise ValueError("The corpus contains no documents: all files are empty.")
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
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # the last character may be incomplete
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not valid {encoding} text: {error.reason} at byte {error.start}. If it uses another encoding, "
            f"pass it, for example encoding='latin-1'."
        ) from None
    if "\0" in text:
        raise ValueError(f"{file} is not a text file: it contains zero bytes.")
