"""`python -m recipes.benchmarks.ensemble`: what several teachers add to one.

The teachers are MiniLM with 6 layers, fine-tuned on film-review sentences with different seeds. A student with 3 of the
first teacher's layers learns on all sentences from the first teacher alone, from the mean of all teachers'
probabilities, or from the mean of their logits. All else is the same. With few labels, the teachers are fine-tuned on
these alone, and the other sentences have no label for the student either.

Each repetition has its own labelled sentences and its own teachers. Figures are written after each training, and a
second run continues from there.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

from hf_distill import __version__, add_teacher_targets, classification_metrics, join_teacher_targets, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    predict,
    print_machine,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.benchmarks.where_distilling_pays import (
    BATCH_SIZE,
    DISTILLATION,
    LEARNING_RATE_OF_ONE_LAYER,
    MIN_STEPS,
    differences,
    labelled_rows,
    percents,
    train,
)
from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.fetch import fetch
from recipes.quickstart.train import common_options, load_pretrained

ONE, PROBABILITIES, LOGITS = "one teacher", "mean of probabilities", "mean of logits"
WAYS: dict[str, dict[str, object]] = {ONE: {}, PROBABILITIES: {}, LOGITS: {"teacher_mean": "logits"}}
"""For each student, its training arguments in addition to the common ones."""

TEACHER, ENSEMBLE = "first teacher", "mean of the teachers"
MEASURES = {"accuracy": "accuracy", "expected_calibration_error": "expected calibration error"}


class Benchmark:
    """Runs the trainings that are not yet in the file `output`, and writes their figures there."""

    def __init__(self, model_folder: Path, corpus: Corpus, output: Path, num_teachers: int, epochs: int):
        self.model_folder, self.corpus, self.output = model_folder, corpus, output
        self.num_teachers, self.epochs = num_teachers, epochs
        self.folder = output.parent / output.stem
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.rows = tokenize(corpus.train, self.tokenizer)
        self.figures: dict[str, dict[str, float]] = {}
        settings = {"sentences": len(self.rows), "teachers": num_teachers, "epochs": epochs, "hf_distill": __version__}
        if output.exists() and (written := json.loads(output.read_text()))["settings"] == settings:
            self.figures = written["trainings"]
        self.measured = {
            "machine": print_machine("device", "threads", "training"),
            "versions": print_versions([*PACKAGES, "datasets"]),
            "settings": settings,
            "trainings": self.figures,
        }

    def repeat(self, repetition: int, num_labels: int) -> None:
        """Trains the teachers and the students of one repetition."""
        names = {name: self.name(repetition, num_labels, name) for name in (TEACHER, ENSEMBLE, *WAYS)}
        if all(name in self.figures for name in names.values()):
            return
        rows = self.rows.shuffle(seed=repetition)  # the first rows keep their labels
        seeds = range(100 * repetition, 100 * repetition + self.num_teachers)
        teachers = [self.teacher(seed, rows.select(range(num_labels)), num_labels) for seed in seeds]
        logits = [self.logits(teacher) for teacher in teachers]
        mean = torch.stack([own.softmax(-1) for own in logits]).mean(0).log()
        self.record(names[TEACHER], logits[0])
        self.record(names[ENSEMBLE], mean)

        targets = [add_teacher_targets(rows, teacher, self.tokenizer) for teacher in teachers]
        of_way = {ONE: targets[0], PROBABILITIES: join_teacher_targets(targets)}
        for way, more in WAYS.items():
            if names[way] in self.figures:
                continue
            student = make_student(teachers[0])
            own_rows = labelled_rows(of_way.get(way, of_way[PROBABILITIES]), num_labels, all_text=True)
            options = {**self.options(repetition, student, len(rows)), **DISTILLATION, **more}
            set_seed(repetition)
            train(student, options, own_rows, self.tokenizer)
            self.record(names[way], self.logits(student))

    def teacher(self, seed: int, rows: Dataset, num_labels: int) -> PreTrainedModel:
        """Fine-tunes and saves a teacher, or loads it if an earlier run did."""
        folder = self.folder / f"teacher-{num_labels}-{seed}"
        if not (folder / "config.json").exists():
            set_seed(seed)
            teacher = load_pretrained(self.model_folder)
            train(teacher, self.options(seed, teacher, len(rows)), rows, self.tokenizer)
            teacher.save_pretrained(folder)
        return AutoModelForSequenceClassification.from_pretrained(folder)

    def options(self, seed: int, model: PreTrainedModel, num_rows: int) -> dict[str, object]:
        return {
            **common_options(seed),
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE_OF_ONE_LAYER / model.config.num_hidden_layers,
            "max_steps": max(MIN_STEPS, self.epochs * math.ceil(num_rows / BATCH_SIZE)),
            "logging_strategy": "no",
        }

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        """Logits `[sentences, labels]` on the test sentences."""
        return predict(model.eval(), self.tokenizer, list(self.corpus.test["text"]))

    def record(self, name: str, logits: torch.Tensor) -> None:
        self.figures[name] = classification_metrics(logits, list(self.corpus.test["labels"]))
        write_json(self.output, self.measured)
        print(f"{name}: accuracy {self.figures[name]['accuracy']:.1%}", flush=True)

    def values(self, measure: str, repetitions: Sequence[int], num_labels: int, name: str) -> list[float]:
        return [self.figures[self.name(repetition, num_labels, name)][measure] for repetition in repetitions]

    @staticmethod
    def name(repetition: int, num_labels: int, name: str) -> str:
        return f"repetition {repetition}, {num_labels} labels, {name}"


def print_table(benchmark: Benchmark, repetitions: Sequence[int], num_labels: int) -> None:
    def lines(name: str, values_of: Callable[[str], list[float]], form: str) -> list[str]:
        return [name, *(percents(values_of(measure), form) for measure in MEASURES)]

    def values(name: str) -> Callable[[str], list[float]]:
        return lambda measure: benchmark.values(measure, repetitions, num_labels, name)

    def gain(way: str, over: str) -> Callable[[str], list[float]]:
        return lambda measure: differences(values(way)(measure), values(over)(measure))

    students = {way: way if way == ONE else f"{way} of {benchmark.num_teachers}" for way in WAYS}
    rows = [lines(name, values(name), ".1f") for name in (TEACHER, ENSEMBLE)]
    rows += [lines(f"student, {shown}", values(way), ".1f") for way, shown in students.items()]
    rows += [
        lines(f"{shown} over {ONE}, pair by pair", gain(way, ONE), "+.1f")
        for way, shown in students.items()
        if way != ONE
    ]
    print(f"\n{num_labels:,} labels; percent, mean ± standard deviation of {len(repetitions)} repetitions\n")
    print(table(["", *MEASURES.values()], rows))


def run(
    model_folder: Path,
    corpus: Corpus,
    output: Path,
    labels: Sequence[int],
    repetitions: Sequence[int],
    num_teachers: int,
    epochs: int,
) -> dict[str, dict[str, float]]:
    """Runs the missing trainings, prints a table for each number of labels, and returns the figures.

    Args:
        model_folder: the pretrained model and its tokenizer.
        corpus: labelled sentences for training and testing.
        output: JSON file, which may already exist.
        labels: numbers of labelled sentences; 0 for all.
        repetitions: numbers of the repetitions, which their seeds are derived from.
        num_teachers: teachers per repetition.
        epochs: number of epochs.
    """
    benchmark = Benchmark(model_folder, corpus, output, num_teachers, epochs)
    numbers = [number or len(benchmark.rows) for number in labels]
    for number in numbers:
        for repetition in repetitions:
            benchmark.repeat(repetition, number)
        print_table(benchmark, repetitions, number)
    return benchmark.figures


@explains_fetch_errors
def main() -> int:
    parser = make_parser("ensemble", __doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[0, 500], help="labelled sentences; 0 for all")
    parser.add_argument("--repetitions", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    corpus = load_corpus(sentences)
    run(model_folder, corpus, options.output, options.labels, options.repetitions, options.teachers, options.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
