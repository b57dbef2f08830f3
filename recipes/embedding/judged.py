"""Compares the similarities of embedding models with those that people see: 50 news texts, all 1,225 pairs.

    python -m recipes.embedding.judged outputs/embedding/3-layers outputs/embedding/half-the-width

prints the Spearman correlation of the teacher, all-MiniLM-L6-v2, and of each model. The judgements are those of Lee,
Pincombe and Welsh, 2005 (An empirical evaluation of models of text document similarity), from the pip package gensim.
"""

import argparse
import sys
import zipfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from hf_distill import EmbeddingModel, quiet_libraries, similarity_metrics
from recipes.embedding.data import load_teacher
from recipes.quickstart.fetch import FetchError, Package, download

JUDGEMENTS = Package(
    name="gensim",
    version="4.4.0",
    archive="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    what="50 news texts with judgements of their similarity",
    megabytes=28,
    options=("--only-binary=:all:", "--platform=manylinux_2_24_x86_64", "--python-version=3.11"),
)
FOLDER = "gensim/test/test_data"


class Judged(NamedTuple):
    """Texts, and how similar people find them.

    Attributes:
        texts: the texts.
        pairs: indices of two texts.
        scores: for each pair, the mean of several people's judgements, from 0 to 1.
    """

    texts: list[str]
    pairs: list[tuple[int, int]]
    scores: list[float]


def load_judged(folder: Path) -> Judged:
    """The texts and judgements, downloaded into `folder` unless they are there."""
    with zipfile.ZipFile(download(JUDGEMENTS, folder / "downloads")) as wheel:
        texts = wheel.read(f"{FOLDER}/lee.cor").decode("latin-1").splitlines()
        matrix = [line.split() for line in wheel.read(f"{FOLDER}/similarities0-1.txt").decode().splitlines()]
    pairs = list(combinations(range(len(texts)), 2))
    return Judged(texts, pairs, [float(matrix[first][second]) for first, second in pairs])


def spearman(model: EmbeddingModel, judged: Judged) -> float:
    """Rank correlation of a model's cosines with the judgements."""
    vectors = model.to_sentence_transformer().encode(judged.texts, show_progress_bar=False)
    first, second = zip(*judged.pairs, strict=True)
    return similarity_metrics(vectors[list(first)], vectors[list(second)], judged.scores)["spearman_cosine"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.embedding.judged", description=__doc__.splitlines()[0])
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="*", help="folders of embedding models")
    parser.add_argument("--fetched", type=Path, default=Path("outputs/quickstart-fetched"), help="folder for downloads")
    args = parser.parse_args(arguments)
    quiet_libraries()
    try:
        teacher, judged = load_teacher(args.fetched), load_judged(args.fetched)
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"{spearman(teacher, judged):.3f}  all-MiniLM-L6-v2")
    for folder in args.models:
        print(f"{spearman(EmbeddingModel.from_pretrained(folder), judged):.3f}  {folder.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
