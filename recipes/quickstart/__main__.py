"""`python -m recipes.quickstart`: fetch, fine-tune the teacher, cut the student, distil it, compare."""

import argparse
import sys
from pathlib import Path

import datasets
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from recipes.quickstart.data import Corpus, load_corpus, tokenize, write_texts
from recipes.quickstart.fetch import FetchError, fetch
from recipes.quickstart.measure import forward, predict, quality, size, speed
from recipes.quickstart.report import comparison_table, students_table, write_plot, write_report
from recipes.quickstart.train import MORE_TEXT, STUDENTS, StudentRun, trained_student, trained_teacher

EXAMPLES = [
    "A warm, funny film that earns every one of its tears.",
    "Two hours of my life that I will never get back.",
    "The plot is thin, but the actors make it worth your evening.",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="where everything is written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each; several give the spread")
    parser.add_argument(
        "--more-text",
        action="store_true",
        help="also train a student without labels on product reviews, editorials and tweets",
    )
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    try:
        model_folder, sentences = fetch(options.output.parent / "quickstart-fetched")
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    students = STUDENTS | MORE_TEXT if options.more_text else STUDENTS
    run(options.output, model_folder, load_corpus(sentences), students, options.seeds)
    return 0


def run(output: Path, model_folder: Path, corpus: Corpus, students: dict[str, StudentRun], seeds: list[int]) -> None:
    """The whole job for each seed, and the report over all of them."""
    results = []
    for seed in seeds:
        folder = output if len(seeds) == 1 else output / f"seed-{seed}"
        results.append(run_seed(seed, folder, model_folder, corpus, students))
    write_report(output / "report.json", results)
    write_plot(output / "quality_against_latency.png", students, results[0])
    write_texts(output / "test.csv", corpus.test)

    first = results[0]
    print("\nTeacher beside student\n")
    print(comparison_table(first["teacher"], first["student"], first["ratios"]))
    spread = "" if len(seeds) == 1 else f", mean ± standard deviation over {len(seeds)} seeds"
    print(f"\nWhat the teacher gives a student of half its layers, in percent of the test sentences{spread}\n")
    print(students_table(students, results))
    print_examples(folder / "student")
    written = "report.json, quality_against_latency.png, test.csv"
    print(f"\nWritten to {output}: {written}; the student is in {folder / 'student'}")


def run_seed(seed: int, folder: Path, model_folder: Path, corpus: Corpus, runs: dict[str, StudentRun]) -> dict:
    """Trains the teacher and the students of one seed, unless they are there already, and measures them."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    datasets.disable_progress_bars()
    train, unlabelled = tokenize(corpus.train, tokenizer), tokenize(corpus.unlabelled, tokenizer)
    teacher = trained_teacher(folder / "teacher", model_folder, train, tokenizer, seed)
    students = {
        name: trained_student(run, folder / name, model_folder, teacher, train, unlabelled, tokenizer, seed)
        for name, run in runs.items()
    }

    print("\nMeasuring")
    texts, labels = list(corpus.test["text"]), list(corpus.test["labels"])
    logits = {name: predict(model, tokenizer, texts) for name, model in {"teacher": teacher, **students}.items()}
    qualities = {name: quality(own, labels, logits["teacher"]) for name, own in logits.items()}
    compared = {"teacher": teacher, "student": students["student"]}
    speeds, speed_ratios = speed(compared, tokenizer, texts[:128])
    figures = {name: size(model, folder / name) | qualities[name] | speeds[name] for name, model in compared.items()}
    # A teacher that never says "positive" has an F1 of 0, and then there is no ratio to it.
    ratios = {name: figures["student"][name] / value if value else None for name, value in figures["teacher"].items()}
    return {
        "seed": seed,
        **figures,
        "ratios": ratios | speed_ratios["student"],
        "students": {name: qualities[name] for name in students},
    }


def print_examples(folder: Path) -> None:
    """Three predictions of the student, loaded from where it was saved."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    print(f"\nThe student in {folder} says\n")
    for text, probabilities in zip(EXAMPLES, forward(model.eval(), tokenizer, EXAMPLES).softmax(-1), strict=True):
        label = int(probabilities.argmax())
        print(f"  {model.config.id2label[label]:8} {probabilities[label]:.0%}  {text}")


if __name__ == "__main__":
    sys.exit(main())
