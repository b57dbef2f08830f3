"""`python -m recipes.quickstart`: fetch, fine-tune the teacher, cut the student, distil it, compare."""

import argparse
import sys
from pathlib import Path

import datasets
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.fetch import FetchError, fetch
from recipes.quickstart.measure import forward, predict, quality, size, speed
from recipes.quickstart.report import comparison_table, students_table, write_plot, write_report
from recipes.quickstart.train import STUDENTS, trained_student, trained_teacher

EXAMPLES = [
    "A warm, funny film that earns every one of its tears.",
    "Two hours of my life that I will never get back.",
    "The plot is thin, but the actors make it worth your evening.",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="where everything is written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each; several give the spread")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    try:
        model_folder, sentences = fetch(options.output.parent / "quickstart-fetched")
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    run(options.output, model_folder, load_corpus(sentences), options.seeds)
    return 0


def run(output: Path, model_folder: Path, corpus: Corpus, seeds: list[int]) -> None:
    """The whole job for each seed, and the report over all of them."""
    results = []
    for seed in seeds:
        folder = output if len(seeds) == 1 else output / f"seed-{seed}"
        results.append(run_seed(seed, folder, model_folder, corpus))
    write_report(output / "report.json", results)
    write_plot(output / "quality_against_latency.png", results[0])

    first = results[0]
    print("\nTeacher beside student\n")
    print(comparison_table(first["teacher"], first["student"], first["ratios"]))
    spread = "" if len(seeds) == 1 else f", mean ± standard deviation over {len(seeds)} seeds"
    print(f"\nWhat the teacher gives a student of half its layers, in percent of the test sentences{spread}\n")
    print(students_table(results))
    print_examples(folder / "student")
    print(f"\nWritten to {output}: report.json, quality_against_latency.png; the student is in {folder / 'student'}")


def run_seed(seed: int, folder: Path, model_folder: Path, corpus: Corpus) -> dict:
    """Trains the teacher and the students of one seed, unless they are there already, and measures them."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    datasets.disable_progress_bars()
    train = tokenize(corpus.train, tokenizer)
    teacher = trained_teacher(folder / "teacher", model_folder, train, tokenizer, seed)
    students = {
        name: trained_student(run, folder / name, model_folder, teacher, train, tokenizer, seed)
        for name, run in STUDENTS.items()
    }

    print("\nMeasuring")
    texts, labels = list(corpus.test["text"]), list(corpus.test["labels"])
    teacher_logits = predict(teacher, tokenizer, texts)
    compared = {"teacher": teacher, "student": students["student"]}
    speeds, speed_ratios = speed(compared, tokenizer, texts[:512])
    measured = {
        name: {**size(model, folder / name), **quality(predict(model, tokenizer, texts), labels, teacher_logits)}
        for name, model in compared.items()
    }
    ratios = {name: measured["student"][name] / value for name, value in measured["teacher"].items()}
    return {
        "seed": seed,
        "teacher": measured["teacher"] | speeds["teacher"],
        "student": measured["student"] | speeds["student"],
        "ratios": ratios | speed_ratios["student"],
        "students": {
            name: quality(predict(model, tokenizer, texts), labels, teacher_logits) for name, model in students.items()
        },
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
