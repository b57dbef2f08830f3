"""`python -m recipes.benchmarks.where_distilling_pays`: what a student gains by a teacher, over the same one without.

The teacher is MiniLM, of 6 layers, fine-tuned on film-review sentences. There are two parts:

- `--part table`: a student of 3 layers and all labels, beside its teacher and without one.
- `--part map`: students of 3, 2 and 1 layers, and from 100 labels to all. A student learns from the labels alone; from
  a teacher that was fine-tuned on the same labels, on the same sentences; from that teacher on all sentences, most of
  them without a label; or so from a teacher that is there already, fine-tuned on all labels.

A training reads its sentences `--epochs` times, but makes MIN_STEPS steps at least, so that one with few sentences
converges too; no number of steps is chosen by a result. Which sentences have the labels is drawn anew for each seed,
and each seed has its own teachers. What a teacher gives for all sentences is computed once.

The figures are written after each training. Run again, it goes on from there: what was trained with the same settings
is not trained again, except for a teacher some of whose students are missing.
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
from recipes.quickstart.fetch import FetchError, fetch
from recipes.quickstart.train import bf16_is_fast, common_options, load_pretrained

LABELS = [100, 500, 2000]
"""How many sentences have a label, beside all of them."""

LAYERS = [3, 2, 1]
SEEDS = {"table": [0, 1, 2, 3, 4], "map": [0]}
"""By part."""

MIN_STEPS, BATCH_SIZE = 100, 64
LEARNING_RATE_OF_ONE_LAYER = 9e-4
"""Over the number of layers. For models without a teacher, on sentences held out of training: 3 layers did as well with
3e-4 as with 6e-4, and worse with 1.5e-4; 1 layer did best with 6e-4 and 1e-3, and with 3e-4 not always better than
chance."""

DISTILLATION = {"temperature": 2.0, "alpha_kl": 5.0, "alpha_task": 2.0, "alpha_cos": 0.0}
UNLABELLED = -100

TEACHER = "teacher"


@dataclass(frozen=True)
class Way:
    """How a student learns.

    Attributes:
        from_teacher: whether it is cut from a fine-tuned teacher and learns from it, or else from the pretrained model.
        teacher_of_all: whether its teacher was fine-tuned on all labels, not on those that the student has.
        all_text: whether it also reads the sentences without a label.
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
"""What is measured, and what it is called. Without a teacher it is agreement with the teacher of the same labels."""


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
"""What was measured of each training, by its name, and the settings it was made with."""


def plan(
    seeds: Sequence[int], labels: Sequence[int], layers: Sequence[int], ways: Sequence[str], num_all: int, deepest: int
) -> dict[Training, list[Training]]:
    """Teachers of `deepest` layers, and the students that each is compared with.

    Of `num_all` labels all sentences have one, and the ways that differ in what they read beside those are one.
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
    """One plan, in which every training is once."""
    students: dict[Training, dict[Training, None]] = {}
    for teacher, own in (group for groups in plans for group in groups.items()):
        students.setdefault(teacher, {}).update(dict.fromkeys(own))
    return {teacher: list(own) for teacher, own in students.items()}


class Benchmark:
    """Trains what is planned and not yet in the file `output`, and keeps the figures there."""

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
        """What the training is made with."""
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
        """Makes all trainings that are missing."""
        missing = {
            teacher: [student for student in students if not self.is_done(student)]
            for teacher, students in groups.items()
        }
        missing = {teacher: students for teacher, students in missing.items() if students or not self.is_done(teacher)}
        clock = Clock([self.work(training) for group in missing.items() for training in (group[0], *group[1])])
        for teacher, students in missing.items():
            self.train_group(teacher, students, clock)

    def work(self, training: Training) -> float:
        """What a training costs, in steps of one layer; optimizer and embeddings are half a layer's."""
        return self.options(training)["max_steps"] * (training.layers + 0.5)

    def train_group(self, teacher_training: Training, students: Sequence[Training], clock: "Clock") -> None:
        rows = self.rows.shuffle(seed=teacher_training.seed)  # the first are those that have a label
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
        """The pretrained model under a new head."""
        return load_pretrained(self.model_folder)

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        """`[sentences, labels]`, of the test sentences."""
        return predict(model.eval(), self.tokenizer, list(self.corpus.test["text"]))

    def record(self, training: Training, logits: torch.Tensor, teacher_logits: torch.Tensor, clock: "Clock") -> None:
        measured = classification_metrics(logits, list(self.corpus.test["labels"]), teacher_logits)
        seconds, left = clock.lap(self.work(training))
        self.results[str(training)] = {"settings": self.settings(training), "seconds": seconds, **measured}
        write_json(self.output, {"machine": self.on, "versions": self.versions, "trainings": self.results})
        accuracy, minutes = f"{measured['accuracy']:.1%}", f"{left / 60:.0f}"
        print(f"{training}: accuracy {accuracy}, {seconds:.0f} s; {minutes} minutes left", flush=True)

    def values(self, measure: str, way: str, labels: int, layers: int, seeds: Sequence[int]) -> list[float]:
        """What was measured, seed by seed."""
        if labels == self.num_all and way != TEACHER and WAYS[way].all_text:
            way = SAME_LABELS  # which then is the same
        return [self.results[str(Training(seed, labels, layers, way))][measure] for seed in seeds]


class Clock:
    """Says how long each piece of work took, and how long the rest should take by that.

    Args:
        work: how much there is of each piece, in any unit.
    """

    def __init__(self, work: Sequence[float]):
        self.left, self.done, self.seconds = sum(work), 0.0, 0.0
        self.start = time.perf_counter()

    def lap(self, work: float) -> tuple[float, float]:
        """The seconds that a piece took, up to now, and those that are left."""
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        self.seconds, self.done, self.left = self.seconds + seconds, self.done + work, self.left - work
        return seconds, self.seconds / self.done * self.left


def labelled_rows(rows: Dataset, num_labels: int, all_text: bool) -> Dataset:
    """The rows with their first labels: those rows alone, or all, where the others are told to have none."""
    if not all_text:
        return rows.select(range(num_labels))
    labels = [*rows["labels"][:num_labels], *[UNLABELLED] * (len(rows) - num_labels)]
    return rows.remove_columns("labels").add_column("labels", labels)


def train(
    model: PreTrainedModel, options: dict[str, object], rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Trains the model: distils it where the options say how."""
    is_distilled = "alpha_kl" in options
    trainer_class = DistillationTrainer if is_distilled else Trainer
    arguments_class = DistillationTrainingArguments if is_distilled else TrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_class(folder, disable_tqdm=True, **options)
        trainer = trainer_class(model, args, train_dataset=rows, processing_class=tokenizer)
        train_quietly(trainer)


def print_table(benchmark: Benchmark, seeds: Sequence[int]) -> None:
    """Teacher, student, and the student without a teacher, all labels."""
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
    """A table for each measure, and one for what is gained in accuracy."""
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
    print(f"\nWhat a teacher adds to the accuracy, seed by seed, {of_cells}\n")
    print(table(["layers", "labels", *list(WAYS)[1:]], lines))


def write_plot(file: Path, benchmark: Benchmark, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """A panel for each measure and number of layers, a line for each way."""
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
    """Trains what is missing, prints the tables, and draws the map beside `output`.

    Args:
        model_folder: the pretrained model and its tokenizer.
        corpus: labelled sentences to train on and to test on.
        output: a JSON file, which may be there already.
        seeds: by part, "table" or "map" or both.
        epochs: how often each sentence is read.
        few_labels: how many sentences have a label, beside all of them.
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


def main() -> int:
    parser = make_parser("where_distilling_pays", __doc__)
    parser.add_argument("--part", choices=SEEDS, help="by default both")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default five for the table and one for the map")
    parser.add_argument("--epochs", type=int, default=2, help="how often each sentence is read")
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    try:
        model_folder, sentences = fetch(options.fetched)
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    corpus = load_corpus(sentences)
    parts = [options.part] if options.part else list(SEEDS)
    seeds = {part: options.seeds or SEEDS[part] for part in parts}
    run(model_folder, corpus, options.output, seeds, options.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
