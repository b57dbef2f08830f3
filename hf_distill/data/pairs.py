"""Loads pairs of texts for classification, with or without labels, and turns them into rows of tokens."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.data.class_labels import ProblemType, read_labels, unknown_label
from hf_distill.data.reading import check_texts, read_rows


def load_labelled_pairs(
    source: str | Path,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> tuple[Dataset, list[str]]:
    """Loads pairs of texts with their labels, and finds the names of the classes.

    Labels are read as in `load_labelled_texts`: a class, several classes, or a number.

    Args:
        source: a .csv (with a header), .json, .jsonl or .parquet file; a folder that `datasets.load_dataset` reads; or
            a Hub name.
        text_column: column with the first text of each pair.
        text_pair_column: column with the second text of each pair.
        label_column: column with the labels.
        label_names: class names in the order of their numbers, from a model or the training data. Default: the classes
            found in the source.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label is, as in the configs of transformers.

    Returns:
        A dataset with the columns `text`, `text_pair` and `labels`, and the class names in the order of their numbers.

    Raises:
        ValueError: if a text of a pair is missing or is not a string; if both columns are the same; and for bad files
            and labels, as in `load_labelled_texts`. Rows are counted from 1, without the header.

    Example:
        >>> train, names = load_labelled_pairs("rte.csv", "sentence1", "sentence2")
        >>> names
        ['entailment', 'not_entailment']
        >>> columns = {"text_column": "sentence1", "text_pair_column": "sentence2"}
        >>> similar, _ = load_labelled_pairs("nyu-mll/glue", **columns, config_name="stsb", problem_type="regression")
    """
    rows = _read(source, [text_column, text_pair_column, label_column], split, config_name)
    labels, names = read_labels(rows, label_column, source, label_names, problem_type)
    return _pairs(rows, text_column, text_pair_column, labels), names


def load_unlabelled_pairs(
    source: str | Path,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    split: str = "train",
    config_name: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    num_classes: int | None = None,
) -> Dataset:
    """Loads pairs of texts without labels, for training on the teacher's predictions alone.

    Args:
        source: as in `load_labelled_pairs`.
        text_column: column with the first text of each pair.
        text_pair_column: column with the second text of each pair. Other columns are ignored.
        split: split of a Hub dataset or of a folder that `load_dataset` reads.
        config_name: configuration of a Hub dataset.
        problem_type: what a label would be, as in `load_labelled_pairs`.
        num_classes: number of classes, for `"multi_label_classification"`.

    Returns:
        A dataset with the columns `text`, `text_pair` and `labels`. All labels are unknown, as in
        `load_unlabelled_texts`.

    Raises:
        ValueError: as in `load_labelled_pairs`.

    Example:
        >>> questions = load_unlabelled_pairs("nyu-mll/glue", "question1", "question2", config_name="qqp")
    """
    rows = _read(source, [text_column, text_pair_column], split, config_name)
    return _pairs(rows, text_column, text_pair_column, [unknown_label(problem_type, num_classes)] * len(rows))


def encode_pairs(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenizes pairs of texts, and truncates each pair to `max_length` tokens, without padding.

    Truncation is `"longest_first"` of transformers: tokens are removed from the end of whichever text is longer, so
    that a short question keeps all its words next to a long passage.

    Args:
        dataset: dataset with the columns `text` and `text_pair`. Other columns are kept.
        tokenizer: any tokenizer that takes pairs.
        max_length: tokens per pair, including special tokens.

    Returns:
        The dataset with the tokenizer's columns, such as `input_ids`, `token_type_ids` and `attention_mask`, in place
        of both texts.

    Raises:
        ValueError: if `max_length` leaves no room for a token of each text.

    Example:
        >>> pairs = Dataset.from_dict({"text": questions, "text_pair": passages, "labels": labels})
        >>> rows = encode_pairs(pairs, tokenizer, max_length=256)
    """
    num_special = tokenizer.num_special_tokens_to_add(pair=True)
    if max_length < num_special + 2:
        raise ValueError(
            f"max_length={max_length} leaves no room for both texts: the tokenizer adds {num_special} special tokens, "
            f"so use at least {num_special + 2}."
        )

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        rows = tokenizer(batch["text"], batch["text_pair"], truncation="longest_first", max_length=max_length)
        return dict(rows)

    return dataset.map(encode, batched=True, remove_columns=["text", "text_pair"], desc="Tokenising")


def _read(source: str | Path, columns: list[str], split: str, config_name: str | None) -> Dataset:
    """Reads columns, and checks the first two, which have the texts of the pairs."""
    if columns[0] == columns[1]:
        raise ValueError(f"The column {columns[0]!r} is given for both texts of a pair: give two columns.")
    rows = read_rows(source, columns, split, config_name)
    for column in columns[:2]:
        check_texts(rows, column, source)
    return rows


def _pairs(rows: Dataset, text_column: str, text_pair_column: str, labels: list) -> Dataset:
    texts = {"text": rows[text_column][:], "text_pair": rows[text_pair_column][:]}
    return Dataset.from_dict({**texts, "labels": labels})
