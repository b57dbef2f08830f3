"""The sentences, as datasets: labelled movie reviews, and text without labels from elsewhere."""

import random
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from recipes.quickstart.folders import written_file

LABELS = ["negative", "positive"]
MAX_LENGTH = 128
OTHER_SOURCES = ["amazonReviewSnippets", "nytEditorialSnippets", "tweets"]


@dataclass(frozen=True)
class Corpus:
    """`train` and `test` are movie-review sentences, with the columns `text` and `labels`.

    `unlabelled` are sentences of product reviews, newspaper editorials and tweets, with the column `text` alone.
    """

    train: Dataset
    test: Dataset
    unlabelled: Dataset


def load_corpus(folder: Path, num_train: int = 5000, num_test: int = 2000) -> Corpus:
    """Some of the movie-review sentences: a mean rating above 0 is positive, below 0 negative, and 0 is left out.

    The split is the same in every run, and no sentence is in both parts.

    Raises:
        ValueError: if there are too few sentences to split.
    """
    rows = [(text, int(rating > 0)) for text, rating in read_ratings(folder / "movieReviewSnippets_GroundTruth.txt")]
    if len(rows) < num_train + num_test:
        raise ValueError(
            f"{folder} has {len(rows)} rated sentences, too few to train on {num_train} and test on {num_test}."
        )
    random.Random(0).shuffle(rows)
    texts = [text for source in OTHER_SOURCES for text, _ in read_ratings(folder / f"{source}_GroundTruth.txt")]
    return Corpus(
        train=_dataset(rows[num_test : num_test + num_train]),
        test=_dataset(rows[:num_test]),
        unlabelled=Dataset.from_dict({"text": texts}),
    )


def read_ratings(file: Path) -> list[tuple[str, float]]:
    """Sentences with their mean rating from -4 to 4, each sentence once, those rated 0 left out."""
    ratings: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        _, rating, text = line.split("\t")
        ratings.setdefault(text.strip(), float(rating))
    return [(text, rating) for text, rating in ratings.items() if rating != 0]


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The columns that the models read, each row at its own length: the collator pads."""
    return dataset.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        remove_columns=["text"],
        desc="Tokenising",
    )


def write_lines(file: Path, texts: list[str]) -> None:
    """A file with one text per line, for `hf-distill export --texts`."""
    with written_file(file) as unfinished:
        unfinished.write_text("\n".join(texts) + "\n", encoding="utf-8")


def write_texts(file: Path, dataset: Dataset) -> None:
    """A CSV file with the columns `text` and `label`, for `hf-distill report` and `hf-distill evaluate`."""
    named = dataset.map(lambda row: {"label": LABELS[row["labels"]]}, remove_columns="labels")
    with written_file(file) as unfinished:
        named.to_csv(unfinished)


def _dataset(rows: list[tuple[str, int]]) -> Dataset:
    return Dataset.from_dict({"text": [text for text, _ in rows], "labels": [label for _, label in rows]})
