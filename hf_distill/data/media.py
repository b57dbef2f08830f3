"""Rows of files that are decoded late: images and recordings, from folders, tables and the Hub."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, Image, Value

from hf_distill.data.class_labels import ProblemType, read_labels, unknown_label
from hf_distill.data.reading import read_rows
from hf_distill.data.showing import SHOWN
from hf_distill.progress import track

FILE = {"bytes": Value("binary"), "path": Value("string")}
"""A file is kept as its bytes, or as its name."""

BATCH_SIZE = 1000
"""Files that are checked before the progress is shown again."""


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        column: column of the rows.
        noun: what one is called in errors.
        suffixes: suffixes of the files that are taken in a folder.
        feature: feature of `datasets` for such files.
        check: raises `ValueError` if the content of a file cannot be decoded.
    """

    column: str
    noun: str
    suffixes: tuple[str, ...]
    feature: type[Image] | type[Audio]
    check: Callable[[bytes], None]


def load_labelled_files(
    kind: Kind,
    source: str | Path,
    file_column: str,
    label_column: str,
    label_names: Sequence[str] | None,
    split: str,
    config_name: str | None,
    problem_type: ProblemType,
) -> tuple[Dataset, list[str]]:
    """Rows with the columns `kind.column`, `sha256` and `labels`, and the names of the classes."""
    if folders := _class_folders(kind, source):
        files = [(file, folder.name) for folder in folders for file in files_in(kind, folder)]
        rows = _rows_of_files(kind, [file for file, _ in files])
        of_labels, label_column = Dataset.from_dict({"label": [name for _, name in files]}), "label"
    else:
        _refuse_loose_files(kind, source)
        table = read_rows(source, [file_column, label_column], split, config_name)
        rows, of_labels = rows_of_table(kind, table, file_column, source), table.select_columns(label_column)
    labels, names = read_labels(of_labels, label_column, source, label_names, problem_type)
    return checked_files(kind, rows, source).add_column("labels", labels), names


def load_unlabelled_files(
    kind: Kind,
    source: str | Path,
    file_column: str,
    split: str,
    config_name: str | None,
    problem_type: ProblemType,
    num_classes: int | None,
) -> Dataset:
    """Rows with the same columns, whose labels are unknown."""
    rows = load_files(kind, source, file_column, split, config_name)
    return rows.add_column("labels", [unknown_label(problem_type, num_classes)] * len(rows))


def load_files(kind: Kind, source: str | Path, file_column: str, split: str, config_name: str | None) -> Dataset:
    """Rows with the columns `kind.column` and `sha256`, from a folder of files or from a table."""
    files = files_in(kind, Path(source)) if Path(source).is_dir() else []
    if files:
        rows = _rows_of_files(kind, files)
    else:
        rows = rows_of_table(kind, read_rows(source, [file_column], split, config_name), file_column, source)
    return checked_files(kind, rows, source)


def input_of(file: dict[str, Any]) -> bytes | str:
    """The bytes or the name of a file of a row."""
    return file["path"] if file["bytes"] is None else file["bytes"]


def files_in(kind: Kind, folder: Path) -> list[Path]:
    """The files of a kind in a folder and its subfolders, in order. Hidden files and folders are left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in kind.suffixes
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _class_folders(kind: Kind, source: str | Path) -> list[Path]:
    """The subfolders of a folder that contain files of a kind."""
    path = Path(source)
    if not path.is_dir():
        return []
    folders = [own for own in sorted(path.iterdir()) if own.is_dir() and not own.name.startswith(".")]
    return [own for own in folders if files_in(kind, own)]


def checked_files(kind: Kind, rows: Dataset, source: str | Path) -> Dataset:
    """Decodes every file once, and adds the column `sha256`.

    Raises:
        ValueError: if files cannot be decoded; it names the first ones.
    """
    digests, wrong = [], []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads:
        for start in track(range(0, len(rows), BATCH_SIZE), f"Checking {kind.noun}s", "batches", only_if_long=True):
            files = rows[start : start + BATCH_SIZE][kind.column]
            for number, (digest, problem) in enumerate(threads.map(partial(_check, kind), files), start=start + 1):
                digests.append(digest)
                if problem is not None:
                    wrong.append(f"{_called(files[number - start - 1], number, source)} {problem}")
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{source} has {len(wrong)} {kind.noun}{'s' * (len(wrong) > 1)} that cannot be read: "
            f"{'; '.join(wrong[:SHOWN])}{more}."
        )
    return rows.add_column("sha256", digests)


def _check(kind: Kind, file: dict[str, Any]) -> tuple[str, str | None]:
    """The digest of a file, and what is wrong with it; None if nothing is."""
    if file is None or (file["bytes"] is None and not file["path"]):
        return "", f"has no {kind.noun}: add it or remove the row"
    try:
        content = file["bytes"] if file["bytes"] is not None else Path(file["path"]).read_bytes()
        kind.check(content)
    except FileNotFoundError:
        return "", "does not exist: check the file name, which is relative to the folder of the table"
    except (OSError, ValueError) as error:
        return "", str(error)
    return hashlib.sha256(content).hexdigest(), None


def _called(file: dict[str, Any] | None, number: int, source: str | Path) -> str:
    name = None if file is None else file["path"]
    is_folder = Path(source).is_dir()
    return str(name) if name and is_folder else f"row {number}" + (f" ({name})" if name else "")


def _refuse_loose_files(kind: Kind, source: str | Path) -> None:
    path = Path(source)
    if path.is_dir() and files_in(kind, path) and not list(path.glob("metadata.*")):
        raise ValueError(
            f"{source} has {kind.noun} files, but no subfolders: give one subfolder of {kind.noun} files per class, or "
            f"{kind.noun}s without labels as unlabelled_file."
        )


def _rows_of_files(kind: Kind, files: Sequence[Path]) -> Dataset:
    named = [{"bytes": None, "path": str(file)} for file in files]
    return Dataset.from_dict({kind.column: named}, features=Features({kind.column: FILE}))


def rows_of_table(kind: Kind, table: Dataset, column: str, source: str | Path) -> Dataset:
    """The files of a table. Names of files are relative to its folder."""
    feature = table.features[column]
    path = Path(source)
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    rows = table.select_columns(column)
    if column != kind.column:
        rows = rows.rename_column(column, kind.column)
    if isinstance(feature, kind.feature) or (isinstance(feature, Value) and feature.dtype.endswith("binary")):
        rows = rows.cast_column(kind.column, kind.feature(decode=False))
    elif isinstance(feature, Value) and feature.dtype.endswith("string"):
        if folder is None:
            raise ValueError(
                f"{source}, column {column!r} has file names, but a dataset on the Hub needs an "
                f"{kind.feature.__name__} column or bytes."
            )
    elif not (isinstance(feature, dict) and feature.keys() == {"bytes", "path"}):
        raise ValueError(
            f"{source}, column {column!r} has {feature}, but must have names of files, bytes of files or an "
            f"{kind.feature.__name__} feature."
        )
    features = Features({kind.column: FILE})
    if (isinstance(feature, Value) and feature.dtype.endswith("string")) or _has_names(kind, rows):
        locate = partial(_in_folder, column=kind.column, folder=folder)
        rows = rows.map(locate, batched=True, features=features)
    return rows.cast(features)


def _has_names(kind: Kind, rows: Dataset) -> bool:
    """Whether some files are named, without their bytes."""
    return any(chunk.field("bytes").null_count for chunk in rows.data.column(kind.column).chunks)


def _in_folder(batch: dict[str, list], column: str, folder: Path | None) -> dict[str, list]:
    def located(file: Any) -> dict[str, Any]:
        file = {"bytes": None, "path": file} if file is None or isinstance(file, str) else file
        if file["bytes"] is None and file["path"] and folder is not None:
            file = {**file, "path": str(folder / file["path"])}
        return file

    return {column: [located(file) for file in batch[column]]}
