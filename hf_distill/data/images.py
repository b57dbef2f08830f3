"""Loads images for classification, with or without labels, from folders, tables and the Hub."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value

from hf_distill.data.class_labels import ProblemType, read_labels, unknown_label
from hf_distill.data.image_processors import image_reader
from hf_distill.data.reading import read_rows
from hf_distill.data.showing import SHOWN
from hf_distill.images import SUFFIXES, ImageReader, check_image, open_image
from hf_distill.progress import track

PIXELS = "pixel_values"
IMAGE = {"bytes": Value("binary"), "path": Value("string")}
"""An image is kept as the bytes of its file, or as the name of its file."""

BATCH_SIZE = 1000
"""Images that are checked before the progress is shown again."""


def load_labelled_images(
    source: str | Path,
    image_column: str = "image",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> tuple[Dataset, list[str]]:
    """Loads images with their labels, finds the names of the classes, and checks that every image can be decoded.

    Args:
        source: one of: a folder with one subfolder of image files per class; a .csv (with a header), .json, .jsonl or
            .parquet file; a folder that `datasets.load_dataset` reads; a Hub name.
        image_column: column with the images: names of files, relative to the folder of the table; bytes of files; or
            an `Image` column. Not used for a folder per class.
        label_column: column with the labels, as in `load_labelled_texts`. Not used for a folder per class.
        label_names: class names in the order of their numbers, from a model or the training data. Default: the classes
            found in the source.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label is, as in the configs of transformers.

    Returns:
        A dataset, and the class names in the order of their numbers. Its columns are `image`, the name or the bytes of
        a file; `sha256` of the file; and `labels`, as in `load_labelled_texts`.

    Raises:
        ValueError: if there are no images; if an image is missing, empty, truncated, no image or too large; if a column
            is missing; or if labels are wrong, as in `load_labelled_texts`. Rows are counted from 1.
        ImportError: if Pillow is missing.

    Example:
        >>> train, names = load_labelled_images("food101/train")
        >>> test, _ = load_labelled_images("test.csv", image_column="file", label_names=names)
    """
    if folders := class_folders(source):
        files = [(file, folder.name) for folder in folders for file in image_files(folder)]
        rows = _rows_of_files([file for file, _ in files])
        of_labels, label_column = Dataset.from_dict({"label": [name for _, name in files]}), "label"
    else:
        _refuse_loose_files(source)
        table = read_rows(source, [image_column, label_column], split, config_name)
        rows, of_labels = _rows_of_table(table, image_column, source), table.select_columns(label_column)
    labels, names = read_labels(of_labels, label_column, source, label_names, problem_type)
    return checked_images(rows, source).add_column("labels", labels), names


def load_unlabelled_images(
    source: str | Path,
    image_column: str = "image",
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    num_classes: int | None = None,
) -> Dataset:
    """Loads images without labels, for training on the teacher's predictions alone.

    Args:
        source: a folder with image files, also in subfolders; or as in `load_labelled_images`.
        image_column: column with the images. A column with labels is ignored.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label would be, as in `load_labelled_images`.
        num_classes: number of classes, for `"multi_label_classification"`.

    Returns:
        A dataset with the columns of `load_labelled_images`. All labels are unknown: -100, a list of -100.0 for several
        classes per image, or NaN for regression.

    Raises:
        ValueError: as in `load_labelled_images`.

    Example:
        >>> photos = load_unlabelled_images("photos")
    """
    files = image_files(Path(source)) if Path(source).is_dir() else []
    if files:
        rows = _rows_of_files(files)
    else:
        rows = _rows_of_table(read_rows(source, [image_column], split, config_name), image_column, source)
    return checked_images(rows, source).add_column("labels", [unknown_label(problem_type, num_classes)] * len(rows))


def encode_images(rows: Dataset, processor: Any) -> Dataset:
    """Makes the images of a dataset ready for a model. Each image is decoded and prepared only when its row is read.

    Args:
        rows: rows from `load_labelled_images`, perhaps with stored targets.
        processor: the model's image processor.

    Returns:
        The rows, with the column `pixel_values` instead of `image`. Reading a row gives its `pixel_values` as an array
        `[channels, height, width]` in fp32. The prepared images are not stored: in fp32, 224 x 224 pixels take 600 kB.

    Example:
        >>> rows = encode_images(train, AutoImageProcessor.from_pretrained("google/vit-base-patch16-224"))
        >>> rows[0]["pixel_values"].shape
        (3, 224, 224)
    """
    kept = [name for name in rows.column_names if name != "sha256"]
    encoded = rows.select_columns(kept).rename_column("image", PIXELS)
    return encoded.with_transform(Decoding(image_reader(processor)))


@dataclass(frozen=True)
class Decoding:
    """A transform of `datasets`: decodes and prepares the images of the rows that are read. Other columns stay."""

    reader: ImageReader

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        return {name: [*map(self._values, own)] if name == PIXELS else own for name, own in rows.items()}

    def _values(self, image: dict[str, Any]) -> np.ndarray:
        return self.reader.values(self.reader.pixels(open_image(input_of(image), self.reader.mode)))


def input_of(image: dict[str, Any]) -> bytes | str:
    """What `open_image` reads for an image of a dataset."""
    return image["path"] if image["bytes"] is None else image["bytes"]


def class_folders(source: str | Path) -> list[Path]:
    """The subfolders of a folder that contain image files."""
    path = Path(source)
    if not path.is_dir():
        return []
    return [own for own in sorted(path.iterdir()) if own.is_dir() and not own.name.startswith(".") and image_files(own)]


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, in order. Hidden files and folders are left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def checked_images(rows: Dataset, source: str | Path) -> Dataset:
    """Decodes every image once, and adds the column `sha256`.

    Raises:
        ValueError: if images cannot be decoded; it names the first ones.
    """
    digests, wrong = [], []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads:
        for start in track(range(0, len(rows), BATCH_SIZE), "Checking images", "batches", only_if_long=True):
            images = rows[start : start + BATCH_SIZE]["image"]
            for number, (digest, problem) in enumerate(threads.map(_check, images), start=start + 1):
                digests.append(digest)
                if problem is not None:
                    wrong.append(f"{_called(images[number - start - 1], number, source)} {problem}")
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{source} has {len(wrong)} image{'s' * (len(wrong) > 1)} that cannot be read: "
            f"{'; '.join(wrong[:SHOWN])}{more}."
        )
    return rows.add_column("sha256", digests)


def _check(image: dict[str, Any]) -> tuple[str, str | None]:
    """The digest of an image's file, and what is wrong with the image; None if nothing is."""
    if image is None or (image["bytes"] is None and not image["path"]):
        return "", "has no image: add it or remove the row"
    try:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        check_image(content)
    except FileNotFoundError:
        return "", "does not exist: check the file name, which is relative to the folder of the table"
    except (OSError, ValueError) as error:
        return "", str(error)
    return hashlib.sha256(content).hexdigest(), None


def _called(image: dict[str, Any] | None, number: int, source: str | Path) -> str:
    name = None if image is None else image["path"]
    is_folder = Path(source).is_dir()
    return str(name) if name and is_folder else f"row {number}" + (f" ({name})" if name else "")


def _refuse_loose_files(source: str | Path) -> None:
    path = Path(source)
    if path.is_dir() and image_files(path) and not list(path.glob("metadata.*")):
        raise ValueError(
            f"{source} has image files, but no subfolders: give one subfolder of image files per class, or images "
            f"without labels as unlabelled_file."
        )


def _rows_of_files(files: Sequence[Path]) -> Dataset:
    images = [{"bytes": None, "path": str(file)} for file in files]
    return Dataset.from_dict({"image": images}, features=Features({"image": IMAGE}))


def _rows_of_table(table: Dataset, column: str, source: str | Path) -> Dataset:
    """The images of a table, whose file names are relative to its folder."""
    feature = table.features[column]
    path = Path(source)
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    rows = table.select_columns(column)
    if column != "image":
        rows = rows.rename_column(column, "image")
    if isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype.endswith("binary")):
        rows = rows.cast_column("image", Image(decode=False))
    elif isinstance(feature, Value) and feature.dtype.endswith("string"):
        if folder is None:
            raise ValueError(
                f"{source}, column {column!r} has file names, but a dataset on the Hub needs an Image column or bytes."
            )
    elif not (isinstance(feature, dict) and feature.keys() == {"bytes", "path"}):
        raise ValueError(
            f"{source}, column {column!r} has {feature}, but must have names of files, bytes of files or an Image "
            f"feature."
        )
    if (isinstance(feature, Value) and feature.dtype.endswith("string")) or _has_names(rows):
        rows = rows.map(partial(_in_folder, folder=folder), batched=True, features=Features({"image": IMAGE}))
    return rows.cast(Features({"image": IMAGE}))


def _has_names(rows: Dataset) -> bool:
    """Whether some images are named by files, without the bytes of the file."""
    return any(chunk.field("bytes").null_count for chunk in rows.data.column("image").chunks)


def _in_folder(batch: dict[str, list], folder: Path | None) -> dict[str, list]:
    def located(image: Any) -> dict[str, Any]:
        image = {"bytes": None, "path": image} if image is None or isinstance(image, str) else image
        if image["bytes"] is None and image["path"] and folder is not None:
            image = {**image, "path": str(folder / image["path"])}
        return image

    return {"image": [located(image) for image in batch["image"]]}
