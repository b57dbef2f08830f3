"""The whole job: fetch, fine-tune the teacher, distil the student, export it to int8, compare the three."""

import shutil
from pathlib import Path

import datasets
import transformers
from transformers import AutoTokenizer

from hf_distill import export_model, load_predictor
from recipes.quickstart.commands import compress_it, own_data, try_it
from recipes.quickstart.data import Corpus, load_corpus, tokenize, write_lines, write_texts
from recipes.quickstart.fetch import fetch
from recipes.quickstart.folders import check_free_space, only_run, write_json
from recipes.quickstart.measure import measure
from recipes.quickstart.progress import Job
from recipes.quickstart.report import closing_sentence, comparison, how_it_was_measured, machine, plot, printable
from recipes.quickstart.train import (
    common_options,
    is_trained,
    load_trained,
    settings_of,
    train_student,
    train_teacher,
)

NUM_TRAIN = 4500
NUM_COMPARED = 100
"""Texts on which the export is compared with the student."""

TEACHER_OPTIONS = {"learning_rate": 1.2e-4, "num_train_epochs": 1, "per_device_train_batch_size": 32}
STUDENT_OPTIONS = {"learning_rate": 2e-4, "num_train_epochs": 1, "per_device_train_batch_size": 32, "alpha_cos": 0.0}

STEPS = {"teacher": 36, "student": 29, "export": 14, "measure": 20}
"""Seconds that each step takes on two cores; for the time left."""

MEGABYTES = 600
"""Disk space for everything that is downloaded and written."""

EXAMPLES = [
    "A warm, funny film that earns every one of its tears.",
    "Dull from the first scene to the last.",
    "The plot is thin, but the actors make it worth your evening.",
]


def run(output: Path) -> None:
    """Runs the quickstart. Models that an earlier run finished with the same settings are kept."""
    quiet()
    int8 = output / "student-int8"
    with only_run(output.parent):
        if not int8.exists():
            check_free_space(output.parent, MEGABYTES)
        pretrained, sentences = fetch(output.parent / "quickstart-fetched")
        corpus = load_corpus(sentences, NUM_TRAIN)
        models = {"teacher": output / "teacher", "student": output / "student", "int8": int8}
        measured = train_and_measure(models, pretrained, corpus)

        write_json(output / "report.json", {"machine": machine(), "models": measured})
        write_texts(output / "train.csv", corpus.train)
        write_texts(output / "test.csv", corpus.test)
        write_lines(output / "texts.txt", list(corpus.train["text"][:NUM_COMPARED]))
        plot(output / "quality_against_latency.png", [measured])
    print_results(measured, len(corpus.test), int8)
    print_commands(output, pretrained)


def quiet() -> None:
    """Shows no messages and progress bars of other libraries: `Job` shows the progress."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def train_and_measure(models: dict[str, Path], pretrained: Path, corpus: Corpus) -> dict[str, dict]:
    """Trains and exports what is missing, and measures all three models."""
    teacher, student, int8 = models.values()
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    train = tokenize(corpus.train, tokenizer)
    of_teacher = settings_of(train, common_options(seed=0) | TEACHER_OPTIONS)
    of_student = settings_of(train, common_options(seed=0) | STUDENT_OPTIONS, teacher=TEACHER_OPTIONS)

    job = Job(STEPS)
    with job.progress:
        if is_trained(teacher, of_teacher):
            job.skip("teacher")
        else:
            with job.step("teacher", f"Fine-tuning the teacher on {len(train):,} sentences") as advance:
                train_teacher(teacher, pretrained, train, tokenizer, of_teacher, advance)
        if is_trained(student, of_student):
            job.skip("student")
        else:
            shutil.rmtree(int8, ignore_errors=True)  # the export of another student
            with job.step("student", "Distilling the teacher into a student of half its layers") as advance:
                train_student(student, load_trained(teacher), train, tokenizer, of_student, advance)
        if int8.exists():
            job.skip("export")
        else:
            with job.step("export", "Exporting the student to int8"):
                export_model(student, int8, texts=list(corpus.train["text"][:NUM_COMPARED]))
        with job.step("measure", f"Measuring all three on {len(corpus.test):,} other sentences") as advance:
            return measure(models, list(corpus.test["text"]), list(corpus.test["labels"]), advance)


def print_results(measured: dict[str, dict], num_sentences: int, int8: Path) -> None:
    print(
        printable(f"\n{comparison(measured)}\n\n{how_it_was_measured(num_sentences)}\n\n{closing_sentence(measured)}")
    )
    print("\nThe int8 student says\n")
    for text, said in zip(EXAMPLES, load_predictor(int8).predict(EXAMPLES), strict=True):
        print(f"  {said['label']:8} {said['score']:.0%}  {text}")


def print_commands(output: Path, pretrained: Path) -> None:
    print(f"\nModels, report.json, a plot and the data are in {output}.")
    print("\nTo do the same with your own CSV file, with the columns text and label:\n")
    print("\n".join(own_data(output, pretrained, TEACHER_OPTIONS, STUDENT_OPTIONS)))
    print("\nTo let hf-distill choose layers, widths and format for your data:\n")
    print(compress_it(output))
    print("\nTo try the int8 student in your browser:\n")
    print(try_it(output))
