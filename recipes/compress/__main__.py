"""Finds the fastest student of a MiniLM that keeps 97% of its accuracy on movie-review sentences.

    python -m recipes.compress

fine-tunes all-MiniLM-L6-v2 on labelled sentences, and lets `compress` search for half an hour. Students also learn from
product reviews, newspaper editorials and tweets without labels.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_distill import (
    DistillationTrainingArguments,
    TextClassificationArguments,
    compress,
    quiet_libraries,
    train_model,
)
from recipes.embedding.data import TWEETS, read_tweets
from recipes.quickstart.data import LABELS, MAX_LENGTH, load_corpus
from recipes.quickstart.fetch import FetchError, download, fetch
from recipes.quickstart.folders import written_file
from recipes.quickstart.train import bf16_is_fast

NUM_TEST = 4500
NUM_TRAIN = 6000


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    quiet_libraries()
    try:
        pretrained, data = fetch(args.fetched)[0], write_data(args.fetched, args.output / "data")
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    teacher = args.output / "teacher"
    train_teacher(pretrained, data, teacher)
    result = compress(
        teacher,
        TextClassificationArguments(
            train_file=str(data / "train.csv"),
            test_file=str(data / "test.csv"),
            unlabelled_file=str(data / "unlabelled.txt"),
        ),
        args.output / f"small-{args.sampler}-{args.seed}",
        keep=args.keep,
        budget=args.budget,
        workers=args.workers,
        threads=args.threads,
        sampler=args.sampler,
        seed=args.seed,
    )
    print(f"\n{result.answer}\n\n{result.folder.parent}/compression.md has the front and every student.")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.compress", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/compress"), help="folder for models and results")
    parser.add_argument("--fetched", type=Path, default=Path("outputs/quickstart-fetched"), help="folder for downloads")
    parser.add_argument("--keep", type=float, default=0.97, help="share of the accuracy to keep (default: 0.97)")
    parser.add_argument("--budget", default="30m", help="time of the search (default: 30m)")
    parser.add_argument("--workers", type=int, default=1, help="students trained at the same time (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of the measured models (default: all cores)")
    parser.add_argument("--sampler", default="tpe", help="tpe, or random for comparison (default: tpe)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")
    return parser.parse_args(arguments)


def write_data(fetched: Path, folder: Path) -> Path:
    """Writes training, test and unlabelled texts, the same ones in every run. No text is in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(fetch(fetched)[1], NUM_TRAIN, NUM_TEST)
    for name, rows in {"train": corpus.train, "test": corpus.test}.items():
        with (
            written_file(folder / f"{name}.csv") as unfinished,
            unfinished.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((row["text"], LABELS[row["labels"]]) for row in rows)
    labelled = {text for rows in (corpus.train, corpus.test) for text in rows["text"]}
    tweets = read_tweets(download(TWEETS, fetched / "downloads"))
    unlabelled = sorted({*corpus.unlabelled["text"], *tweets} - labelled - {""})
    with written_file(folder / "unlabelled.txt") as unfinished:
        unfinished.write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
    return folder


def train_teacher(pretrained: Path, data: Path, folder: Path) -> None:
    """Fine-tunes the pretrained model, unless the folder has it already."""
    train_model(
        TextClassificationArguments(
            model_name_or_path=str(pretrained), train_file=str(data / "train.csv"), max_length=MAX_LENGTH
        ),
        DistillationTrainingArguments(
            str(folder),
            num_train_epochs=2,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=bf16_is_fast(),
            save_strategy="no",
            report_to="none",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
