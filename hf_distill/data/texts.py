"""Loads texts for classification, with or without labels, from files, folders of text and the Hub."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from hf_distill.data.class_labels import ProblemType, read_labels, unknown_label
from hf_distill.data.reading import check_texts, read_rows, read_text

WITHOUT_LABELS = "unsup"
"""Name of the folder with unlabelled texts next to the class folders, as in aclImdb."""


def load_labelled_texts(
    source: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> tuple[Dataset, list[str]]:
    """Loads texts with their labels, and finds the names of the classes.

    A label is a class, given by its name or by its number from 0. With `problem_type="multi_label_classification"` it
    is a list of classes, or their names in one cell separated by `|`; with `"regression"` it is a number. Names of a
    `ClassLabel` column keep their order; other names are sorted. With `label_names`, a label is looked up by name
    first, then by number.

    Args:
        source: one of: a .csv (with a header), .json, .jsonl or .parquet file; a folder with one subfolder of .txt
            files per class, such as `aclImdb/train` (its subfolder `unsup` is left out); a folder that
            `datasets.load_dataset` reads; a Hub name.
        text_column: column with the texts. Not used for folders of .txt files.
        label_column: column with the labels. Not used for folders of .txt files.
        label_names: class names in the order of their numbers, from a model or the training data. Default: the classes
            found in the source.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label is, as in the configs of transformers.

    Returns:
        A dataset with the columns `text` and `labels`, and the class names in the order of their numbers. Plain numbers
        get the names `LABEL_0` and so on, as in transformers. `labels` are integers; for several classes per text,
        lists with 1.0 for each class of the text and 0.0 for the others; for regression, floats.

    Raises:
        ValueError: if a file is missing, empty or unreadable; if a column is missing; if a text is empty or not a
            string; if a label is missing, does not fit `problem_type` (a float such as 1.0 is not a class), or is
            not in `label_names`; or if there are fewer than two classes. Rows are counted from 1, without the header.

    Example:
        >>> train, names = load_labelled_texts("reviews.csv", text_column="review", label_column="sentiment")
        >>> test, _ = load_labelled_texts("test.csv", "review", "sentiment", label_names=names)
        >>> imdb, names = load_labelled_texts("stanfordnlp/imdb", split="test")  # names: neg, pos
    """
    if _class_folders(source):
        rows, text_column, label_column = _read_class_folders(Path(source)), "text", "label"
    else:
        rows = read_rows(source, [text_column, label_column], split, config_name)
    check_texts(rows, text_column, source)
    labels, names = read_labels(rows, label_column, source, label_names, problem_type)
    texts = rows.select_columns(text_column)
    if text_column != "text":
        texts = texts.rename_column(text_column, "text")
    return texts.add_column("labels", labels), names


def load_unlabelled_texts(
    source: str | Path,
    text_column: str = "text",
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    num_classes: int | None = None,
) -> Dataset:
    """Loads texts without labels, for training on the teacher's predictions alone.

    Args:
        source: as in `load_labelled_texts`; or a .txt file with one text per line; or a folder of .txt files with one
            text per file. Blank lines and blank files are left out.
        text_column: column with the texts. A column with labels is ignored.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label would be, as in `load_labelled_texts`.
        num_classes: number of classes, for `"multi_label_classification"`.

    Returns:
        A dataset with the columns `text` and `labels`. All labels are unknown: -100, a list of -100.0 for several
        classes per text, or NaN for regression.

    Raises:
        ValueError: if a file is missing, empty or unreadable, if the column is missing, or if a text is empty.

    Example:
        >>> reviews = load_unlabelled_texts("stanfordnlp/imdb", split="unsupervised")
    """
    path = Path(source)
    files = [path] if path.suffix == ".txt" else sorted(path.rglob("*.txt"))
    if files and (path.is_dir() or path.suffix == ".txt"):
        texts = [read_text(file) for file in files]
        if path.suffix == ".txt":
            texts = texts[0].splitlines()
        rows = Dataset.from_dict({"text": [text.strip() for text in texts if text.strip()]})
        if not len(rows):
            raise ValueError(f"{source} contains no texts, only white space.")
    else:
        rows = read_rows(source, [text_column], split, config_name).select_columns(text_column)
        check_texts(rows, text_column, source)
        if text_column != "text":
            rows = rows.rename_column(text_column, "text")
    return rows.add_column("labels", [unknown_label(problem_type, num_classes)] * len(rows))


def _class_folders(source: str | Path) -> list[Path]:
    """The subfolders of a folder that contain .txt files."""
    path = Path(source)
    return sorted({file.parent for file in path.glob("*/*.txt")}) if path.is_dir() else []


def _read_class_folders(folder: Path) -> Dataset:
    texts: list[str] = []
    labels: list[str] = []
    for of_class in _class_folders(folder):
        if of_class.name != WITHOUT_LABELS:
            files = sorted(of_class.glob("*.txt"))
            texts += map(read_text, files)
            labels += [of_class.name] * len(files)
    return Dataset.from_dict({"text": texts, "label": labels})
