"""`python -m recipes.benchmarks.where_distilling_pays`: how much a teacher improves a student.

The teacher is MiniLM with 6 layers, fine-tuned on film-review sentences. There are two parts:

- `--part table`: a student with 3 layers and all labels, trained with and without its teacher.
- `--part map`: students with 3, 2 and 1 layers, and from 100 labels to all labels. A student learns in one of four
  ways: from the labels alone; from a teacher fine-tuned on the same labels, on the same sentences; from that teacher on
  all sentences, most of them without a label; or on all sentences from a teacher fine-tuned on all labels.

A training runs `--epochs` epochs, but at least MIN_STEPS steps, so that trainings with few sentences converge too; no
number of steps is chosen by its result. Each seed draws its own labelled sentences and has its own teachers. The
outputs of a teacher for all sentences are computed once.

Figures are written after each training. A second run continues from there: trainings with the same settings are not
repeated, except for a teacher that still lacks students.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    __version__,
    add_teacher_targets,
    classification_metrics,
    make_student,
)
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    predict,
    print_machine,
    print_versions,
    silence,
    spread,
    table,
    train_quietly,
    write_json,
)
from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.fetch import fetch
from recipes.quickstart.train import bf16_is_fast, common_options, load_pretrained

LABELS = [100, 500, 2000]
"""Numbers of labelled sentences, in addition to all sentences."""

LAYERS = [3, 2, 1]
SEEDS = {"table": [0, 1, 2, 3, 4], "map": [0]}
"""Default seeds by part."""

MIN_STEPS, BATCH_SIZE = 100, 64
LEARNING_RATE_OF_ONE_LAYER = 9e-4
"""Learning rate, divided by the number of layers.

Chosen for models without a teacher, on held-out training sentences. 3 layers were as good with 3e-4 as with 6e-4, and
worse with 1.5e-4. 1 layer was best with 6e-4 and 1e-3; with 3e-4 it was not always better than chance.
"""

DISTILLATION = {"temperature": 2.0, "alpha_kl": 5.0, "alpha_task": 2.0, "alpha_cos": 0.0}
UNLABELLED = -100

TEACHER = "teacher"


@dataclass(frozen=True)
class Way:
    """How a student learns.

    Attributes:
        from_teacher: True if it is cut from a fine-tuned teacher and learns from it; else it is cut from the pretrained
            model.
        teacher_of_all: True if the teacher was fine-tuned on all labels, not only on the student's labels.
        all_text: True if the student also learns from sentences without a label.
    """

    from_teacher: bool = True
    teacher_of_all: bool = False
    all_text: bool = False


NO_TEACHER, SAME_LABELS = "no teacher", "teacher of these labels"
FINE_TUNING = Way(from_teacher=False)
WAYS = {
    NO_TEACHER: FINE_TUNING,
    SAME_LABELS: Way(),
    "that teacher, all text": Way(all_text=True),
    "teacher of all labels, all text": Way(teacher_of_all=True, all_text=True),
}

AGREEMENT = "agreement"
MEASURES = {
    "accuracy": "accuracy",
    AGREEMENT: "agreement with the teacher",
    "expected_calibration_error": "expected calibration error",
}
"""Measures and their titles. For students without a teacher, agreement is with the teacher of the same labels."""


@dataclass(frozen=True)
class Training:
    """One model to train: a teacher, or a student in one of `WAYS`."""

    seed: int
    labels: int
    layers: int
    way: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.labels} labels, layers: {self.layers}, {self.way}"


Results = dict[str, dict[str, object]]
"""Measurements and settings by name of the training."""


def plan(
    seeds: Sequence[int], labels: Sequence[int], layers: Sequence[int], ways: Sequence[str], num_all: int, deepest: int
) -> dict[Training, list[Training]]:
    """Plans teachers with `deepest` layers, and the students of each.

    With all `num_all` labels there are no unlabelled sentences, so ways that differ only in those are planned once.
    """
    groups: dict[Training, list[Training]] = {}
    for seed, number, name in product(seeds, labels, ways):
        way = WAYS[name]
        if number == num_all and way.all_text:
            continue
        teacher = Training(seed, num_all if way.teacher_of_all else number, deepest, TEACHER)
        groups.setdefault(teacher, []).extend(Training(seed, number, depth, name) for depth in layers)
    return groups


def joined(plans: Sequence[dict[Training, list[Training]]]) -> dict[Training, list[Training]]:
    """Merges plans, with every training only once."""
    students: dict[Training, dict[Training, None]] = {}
    for teacher, own in (group for groups in plans for group in groups.items()):
        students.setdefault(teacher, {}).update(dict.fromkeys(own))
    return {teacher: list(own) for teacher, own in students.items()}


class Benchmark:
    """Runs the planned trainings that are not yet in the file `output`, and writes their figures there."""

    def __init__(self, model_folder: Path, corpus: Corpus, output: Path, epochs: int):
        self.model_folder, self.corpus, self.output, self.epochs = model_folder, corpus, output, epochs
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folder)
        self.rows = tokenize(corpus.train, self.tokenizer)
        self.deepest = AutoConfig.from_pretrained(model_folder).num_hidden_layers
        self.results: Results = json.loads(output.read_text())["trainings"] if output.exists() else {}
        self.on = print_machine("device", "threads", "training")
        self.versions = print_versions([*PACKAGES, "datasets"])

    @property
    def num_all(self) -> int:
        return len(self.rows)

    def options(self, training: Training) -> dict[str, object]:
        """The settings of a training."""
        way = WAYS.get(training.way, FINE_TUNING)
        num_rows = self.num_all if way.all_text else training.labels
        return {
            **common_options(training.seed),
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE_OF_ONE_LAYER / training.layers,
            "max_steps": max(MIN_STEPS, self.epochs * math.ceil(num_rows / BATCH_SIZE)),
            "logging_strategy": "no",
            **(DISTILLATION if way.from_teacher else {}),
        }

    def settings(self, training: Training) -> dict[str, object]:
        return {"options": self.options(training), "sentences": self.num_all, "hf_distill": __version__}

    def is_done(self, training: Training) -> bool:
        return self.results.get(str(training), {}).get("settings") == self.settings(training)

    def run(self, groups: dict[Training, list[Training]]) -> None:
        """Runs all missing trainings."""
        missing = {
            teacher: [student for student in students if not self.is_done(student)]
            for teacher, students in groups.items()
        }
        missing = {teacher: students for teacher, students in missing.items() if students or not self.is_done(teacher)}
        clock = Clock([self.work(training) for group in missing.items() for training in (group[0], *group[1])])
        for teacher, students in missing.items():
            self.train_group(teacher, students, clock)

    def work(self, training: Training) -> float:
        """Cost of a training in steps of one layer. Optimizer and embeddings cost as much as half a layer."""
        return self.options(training)["max_steps"] * (training.layers + 0.5)

    def train_group(self, teacher_training: Training, students: Sequence[Training], clock: "Clock") -> None:
        rows = self.rows.shuffle(seed=teacher_training.seed)  # the first rows keep their labels
        set_seed(teacher_training.seed)
        teacher = self.pretrained()
        train(teacher, self.options(teacher_training), rows.select(range(teacher_training.labels)), self.tokenizer)
        teacher_logits = self.logits(teacher)
        self.record(teacher_training, teacher_logits, teacher_logits, clock)
        if not students:
            return
        dtype = "bfloat16" if bf16_is_fast() else None
        with tempfile.TemporaryDirectory() as folder:
            targets = add_teacher_targets(rows, teacher, self.tokenizer, dtype=dtype, output_dir=folder)
            for training in students:
                way = WAYS[training.way]
                set_seed(training.seed)
                student = make_student(teacher if way.from_teacher else self.pretrained(), training.layers)
                own_rows = labelled_rows(targets if way.from_teacher else rows, training.labels, way.all_text)
                train(student, self.options(training), own_rows, self.tokenizer)
                self.record(training, self.logits(student), teacher_logits, clock)

    def pretrained(self) -> PreTrainedModel:
        """Loads the pretrained model with a new head."""
        return load_pretrained(self.model_folder)

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        """Logits `[sentences, labels]` on the test sentences."""
        return predict(model.eval(), self.tokenizer, list(self.corpus.test["text"]))

    def record(self, training: Training, logits: torch.Tensor, teacher_logits: torch.Tensor, clock: "Clock") -> None:
        measured = classification_metrics(logits, list(self.corpus.test["labels"]), teacher_logits)
        seconds, left = clock.lap(self.work(training))
        self.results[str(training)] = {"settings": self.settings(training), "seconds": seconds, **measured}
        write_json(self.output, {"machine": self.on, "versions": self.versions, "trainings": self.results})
        accuracy, minutes = f"{measured['accuracy']:.1%}", f"{left / 60:.0f}"
        print(f"{training}: accuracy {accuracy}, {seconds:.0f} s; {minutes} minutes left", flush=True)

    def values(self, measure: str, way: str, labels: int, layers: int, seeds: Sequence[int]) -> list[float]:
        """The measurements, one per seed."""
        if labels == self.num_all and way != TEACHER and WAYS[way].all_text:
            way = SAME_LABELS  # the same training in this case
        return [self.results[str(Training(seed, labels, layers, way))][measure] for seed in seeds]


class Clock:
    """Measures how long each piece of work takes, and estimates the time left.

    Args:
        work: amount of work of each piece, in any unit.
    """

    def __init__(self, work: Sequence[float]):
        self.left, self.done, self.seconds = sum(work), 0.0, 0.0
        self.start = time.perf_counter()

    def lap(self, work: float) -> tuple[float, float]:
        """Returns the seconds that the last piece took, and the seconds left."""
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        self.seconds, self.done, self.left = self.seconds + seconds, self.done + work, self.left - work
        return seconds, self.seconds / self.done * self.left


def labelled_rows(rows: Dataset, num_labels: int, all_text: bool) -> Dataset:
    """The rows with labels: only the first rows, or all rows with the labels of the others removed."""
    if not all_text:
        return rows.select(range(num_labels))
    labels = [*rows["labels"][:num_labels], *[UNLABELLED] * (len(rows) - num_labels)]
    return rows.remove_columns("labels").add_column("labels", labels)


def train(
    model: PreTrainedModel, options: dict[str, object], rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Trains the model, with distillation if the options contain it."""
    is_distilled = "alpha_kl" in options
    trainer_class = DistillationTrainer if is_distilled else Trainer
    arguments_class = DistillationTrainingArguments if is_distilled else TrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_class(folder, disable_tqdm=True, **options)
        trainer = trainer_class(model, args, train_dataset=rows, processing_class=tokenizer)
        train_quietly(trainer)


def print_table(benchmark: Benchmark, seeds: Sequence[int]) -> None:
    """Prints teacher, student, and student without a teacher, with all labels."""
    depth, num_all = LAYERS[0], benchmark.num_all
    models = {
        f"teacher, {benchmark.deepest} layers": (TEACHER, benchmark.deepest),
        f"student, {depth} layers": (SAME_LABELS, depth),
        "the same without a teacher": (NO_TEACHER, depth),
    }
    measured = {
        name: {measure: benchmark.values(measure, way, num_all, layers, seeds) for measure in MEASURES}
        for name, (way, layers) in models.items()
    }
    teacher, student, alone = measured.values()
    lines = [
        [
            name,
            percents(own["accuracy"]),
            percents([one / of for one, of in zip(own["accuracy"], teacher["accuracy"], strict=True)]),
            *(percents(own[measure]) for measure in list(MEASURES)[1:]),
        ]
        for name, own in measured.items()
    ]
    gain = [differences(student[measure], alone[measure]) for measure in MEASURES]
    lines.append(["gain by the teacher, seed by seed", percents(gain[0]), "", *map(percents, gain[1:])])
    print(f"\n{num_all:,} sentences with labels; percent, mean ± standard deviation over {len(seeds)} seeds\n")
    print(table(["", "accuracy", "of the teacher's accuracy", *list(MEASURES.values())[1:]], lines))


def print_map(benchmark: Benchmark, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Prints a table for each measure, and a table of the gain in accuracy."""
    of_cells = f"percent, mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "percent, one seed"

    def line(name: str, number: int, of_ways: dict[str, Sequence[float]], form: str = ".1f") -> list[str]:
        cells = {way: percents(values, form) for way, values in of_ways.items()}
        if number == benchmark.num_all:
            cells |= {way: "the same" for way in of_ways if way in WAYS and WAYS[way].all_text}
        return [name, f"{number:,}", *cells.values()]

    def of_ways(measure: str, number: int, layers: int) -> dict[str, list[float]]:
        return {way: benchmark.values(measure, way, number, layers, seeds) for way in WAYS}

    for measure, title in MEASURES.items():
        lines = []
        if measure != AGREEMENT:  # a teacher agrees with itself
            for number in labels:
                own = benchmark.values(measure, TEACHER, number, benchmark.deepest, seeds)
                lines.append(line(f"{benchmark.deepest}, teacher", number, {TEACHER: own}) + [""] * (len(WAYS) - 1))
        lines += [
            line(str(depth), number, of_ways(measure, number, depth)) for depth, number in product(LAYERS, labels)
        ]
        print(f"\n{title.capitalize()}, {of_cells}\n")
        print(table(["layers", "labels", *WAYS], lines))

    lines = []
    for depth, number in product(LAYERS, labels):
        accuracies = of_ways("accuracy", number, depth)
        alone = accuracies.pop(NO_TEACHER)
        gains = {way: differences(taught, alone) for way, taught in accuracies.items()}
        lines.append(line(str(depth), number, gains, "+.1f"))
    print(f"\nGain in accuracy through a teacher, seed by seed, {of_cells}\n")
    print(table(["layers", "labels", *list(WAYS)[1:]], lines))


def write_plot(file: Path, benchmark: Benchmark, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Draws a panel for each measure and number of layers, with a line for each way."""
    size = (4 * len(LAYERS), 3.2 * len(MEASURES))
    figure, panels = plt.subplots(
        len(MEASURES), len(LAYERS), figsize=size, sharex=True, sharey="row", layout="constrained"
    )
    for (row, (measure, title)), (column, layers) in product(enumerate(MEASURES.items()), enumerate(LAYERS)):
        axes = panels[row, column]
        of_ways = [(way, layers, {"marker": "o"}) for way in WAYS]
        if measure != AGREEMENT:
            of_ways.append((TEACHER, benchmark.deepest, {"color": "grey", "linestyle": "--"}))
        for way, depth, style in of_ways:
            values = [benchmark.values(measure, way, number, depth, seeds) for number in labels]
            deviations = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values]
            label = f"teacher of these labels itself, {depth} layers" if way == TEACHER else f"student, {way}"
            means = [statistics.mean(own) for own in values]
            axes.errorbar(labels, means, deviations, label=label, capsize=3, markersize=4, **style)
        axes.set_xscale("log")
        axes.set_xticks(labels, [f"{number:,}" for number in labels])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, position: f"{100 * value:g}%")
        axes.grid(alpha=0.3)
        if row == 0:
            axes.set_title(f"{layers} layer{'s' if layers > 1 else ''}")
        if row == len(MEASURES) - 1:
            axes.set_xlabel("labels")
        if column == 0:
            axes.set_ylabel(title)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    unfinished = file.with_suffix(".unfinished.png")
    figure.savefig(unfinished, dpi=120)
    plt.close(figure)
    unfinished.replace(file)


def percents(values: Sequence[float], form: str = ".1f") -> str:
    return spread([100 * value for value in values], form)


def differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def run(
    model_folder: Path,
    corpus: Corpus,
    output: Path,
    seeds: dict[str, Sequence[int]],
    epochs: int,
    few_labels: Sequence[int] = LABELS,
) -> Results:
    """Runs the missing trainings, prints the tables, and draws the map next to `output`.

    Args:
        model_folder: the pretrained model and its tokenizer.
        corpus: labelled sentences for training and testing.
        output: JSON file, which may already exist.
        seeds: seeds by part: "table", "map" or both.
        epochs: number of epochs.
        few_labels: numbers of labelled sentences, in addition to all sentences.
    """
    benchmark = Benchmark(model_folder, corpus, output, epochs)
    num_all, deepest = benchmark.num_all, benchmark.deepest
    labels = {"table": [num_all], "map": [*few_labels, num_all]}
    layers = {"table": LAYERS[:1], "map": LAYERS}
    ways = {"table": [SAME_LABELS, NO_TEACHER], "map": list(WAYS)}
    benchmark.run(
        joined([plan(own, labels[part], layers[part], ways[part], num_all, deepest) for part, own in seeds.items()])
    )
    if "table" in seeds:
        print_table(benchmark, seeds["table"])
    if "map" in seeds:
        print_map(benchmark, labels["map"], seeds["map"])
        write_plot(output.with_suffix(".png"), benchmark, labels["map"], seeds["map"])
        print(f"\nThe plot is {output.with_suffix('.png')}")
    return benchmark.results


@explains_fetch_errors
def main() -> int:
    parser = make_parser("where_distilling_pays", __doc__)
    parser.add_argument("--part", choices=SEEDS, help="by default both")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds (default: five for the table, one for the map)")
    parser.add_argument("--epochs", type=int, default=2, help="number of epochs")
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    corpus = load_corpus(sentences)
    parts = [options.part] if options.part else list(SEEDS)
    seeds = {part: options.seeds or SEEDS[part] for part in parts}
    run(model_folder, corpus, options.output, seeds, options.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
