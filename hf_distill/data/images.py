"""Loads images for classification, with or without labels, from folders, tables and the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from hf_distill.data.class_labels import ProblemType
from hf_distill.data.image_processors import image_reader
from hf_distill.data.media import Kind, input_of, load_labelled_files, load_unlabelled_files
from hf_distill.images import SUFFIXES, ImageReader, check_image, open_image

PIXELS = "pixel_values"
IMAGES = Kind(column="image", noun="image", suffixes=SUFFIXES, feature=Image, check=check_image)


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
    return load_labelled_files(
        IMAGES, source, image_column, label_column, label_names, split, config_name, problem_type
    )


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
    return load_unlabelled_files(IMAGES, source, image_column, split, config_name, problem_type, num_classes)


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
