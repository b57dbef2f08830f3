"""`python -m recipes.benchmarks.signals`: which losses help a student, at equal training time.

The teacher is MiniLM with 6 layers, fine-tuned to sort film-review sentences into three classes by their mean rating:
below -1.5, above 1.5, and between. (Some divergences need three classes.) Its students have 3 of its layers, 2 of its
layers, or all layers at half the width, with the first half of every axis of every weight.

A student learns from the labels alone, from the labels and one signal of the teacher, or from a combination. All
trainings get the same processor time: the time of a step is measured first, with all losses in turn. With `--steps` all
trainings get the same number of steps instead, as on a GPU, where processor time is not the time of a training.

Labels, forward KL and cos have the default weights. Another divergence has the weight at which its gradient is as large
as that of forward KL. A loss over inner layers has the weight at which its gradient is as large as that of the labels.
These weights are measured once per student, in the first steps with seed 0, and not tuned.

The best losses are chosen on validation sentences; the tables show test sentences. Figures are written after each
training, and a second run continues from there.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, TrainerCallback, set_seed

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    __version__,
    classification_metrics,
    make_student,
    suggest_weights,
)
from recipes.benchmarks._common import (
    PACKAGES,
    QUIET,
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
from recipes.benchmarks.where_distilling_pays import differences, percents, train
from recipes.quickstart.data import load_corpus, read_ratings, tokenize
from recipes.quickstart.fetch import SENTENCE_FILES, fetch
from recipes.quickstart.students import TEACHER_OPTIONS
from recipes.quickstart.train import bf16_is_fast, common_options

LABELS = "labels"
DIVERGENCES = ["reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "mse", "dkd", "dist"]
SIGNALS: dict[str, tuple[str, dict[str, object]]] = {
    LABELS: ("alpha_task", {}),
    "forward_kl": ("alpha_kl", {}),
    **{name: ("alpha_kl", {"divergence": name}) for name in DIVERGENCES},
    "forward_kl of standardised logits": ("alpha_kl", {"standardize_logits": True}),
    "cos": ("alpha_cos", {}),
    "hidden mse": ("alpha_hidden", {}),
    "hidden cosine": ("alpha_hidden", {"hidden_loss": "cosine"}),
    "attention": ("alpha_attention", {}),
    "relation": ("alpha_relation", {}),
}
"""For each signal, the training argument that is its weight, and the other arguments that it needs."""

DEFAULT_WEIGHTS = {LABELS: 2.0, "forward_kl": 5.0, "cos": 1.0}

AND, THEN = " + ", ", then "
SINGLE = [
    LABELS,
    "forward_kl",
    *(LABELS + AND + name for name in ("forward_kl", "cos", "hidden mse", "attention", "relation")),
]
COMBINED = [
    "labels + forward_kl + cos",
    "labels + forward_kl + hidden mse",
    "labels + forward_kl + relation",
    "labels + forward_kl + hidden mse + relation",
    "hidden mse + attention, then labels + forward_kl",
]
VARIANTS = [f"labels + {name}" for name in (*DIVERGENCES, "forward_kl of standardised logits", "hidden cosine")]
MIXES = [*SINGLE, *COMBINED, *VARIANTS]
"""What a student learns from. Of two stages, each has half of the time."""

STUDENTS = {"3 layers": 3e-4, "2 layers": 4.5e-4, "half width": 6e-4}
"""Learning rates by student."""

BATCH_SIZE, MAX_WORDS = 32, 16
ROUNDS, STEPS_TO_TIME, STEPS_TO_WEIGH = 2, 4, 3

MEASURES = {
    "accuracy": "accuracy",
    "agreement": "agreement with the teacher",
    "kl_to_teacher": "KL to the teacher",
    "expected_calibration_error": "expected calibration error",
}

Sentences = dict[str, Dataset]
"""Columns `text` and `labels`: "teacher", "train", "validation" and "test"."""


class StepClock(TrainerCallback):
    """Measures the processor time of each step except the first, which is slower."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


class Benchmark:
    """Runs the measurements that are not yet in the file `output`, and writes them there."""

    def __init__(
        self, model_folder: Path, sentences: Sentences, output: Path, seconds: float, steps: int | None = None
    ):
        self.model_folder, self.output, self.seconds, self.steps = model_folder, output, seconds, steps
        self.sentences = sentences
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.rows = tokenize(sentences["train"], self.tokenizer)
        settings = {
            "sentences": {name: len(own) for name, own in sentences.items()},
            **({"seconds": seconds} if steps is None else {"steps": steps}),
            "hf_distill": __version__,
        }
        earlier = json.loads(output.read_text()) if output.exists() else {}
        if earlier.get("settings") != settings:
            earlier = {}
        self.weights: dict[str, dict[str, float]] = earlier.get("weights", {})
        self.step_seconds: dict[str, dict[str, float]] = earlier.get("step_seconds", {})
        self.trainings: dict[str, dict] = earlier.get("trainings", {})
        self.teacher_figures: dict[str, float] = earlier.get("teacher") or self.figures(self.teacher, "test")
        self.measured = {
            "machine": print_machine("device", "threads", "training"),
            "versions": print_versions([*PACKAGES, "datasets"]),
            "settings": settings,
            "teacher": self.teacher_figures,
            "weights": self.weights,
            "step_seconds": self.step_seconds,
            "trainings": self.trainings,
        }

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The teacher, fine-tuned and saved, or loaded if an earlier run did that."""
        folder = self.output.parent / self.output.stem / "teacher"
        if not (folder / "config.json").exists():
            set_seed(0)
            teacher = AutoModelForSequenceClassification.from_pretrained(self.model_folder, num_labels=3)
            options = {**common_options(0), **TEACHER_OPTIONS, "logging_strategy": "no"}
            train(teacher, options, tokenize(self.sentences["teacher"], self.tokenizer), self.tokenizer)
            teacher.save_pretrained(folder)
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()

    @cached_property
    def teacher_logits(self) -> dict[str, torch.Tensor]:
        return {name: self.logits(self.teacher, name) for name in ("validation", "test")}

    def run(self, student: str, mix: str, seed: int) -> None:
        """Trains and measures one student, unless an earlier run did."""
        name = self.name(student, mix, seed)
        if name in self.trainings:
            return
        model, stages, steps, start = self.untrained(student), mix.split(THEN), [], time.process_time()
        for stage in stages:
            steps.append(self.num_steps(student, stage) // len(stages))
            self.train(student, model, stage, seed, self.weights[student], max_steps=steps[-1])
        seconds = time.process_time() - start
        figures = {part: self.figures(model, part) for part in self.teacher_logits}
        self.trainings[name] = {"steps": steps, "seconds": seconds, **figures}
        write_json(self.output, self.measured)
        print(f"{name}: " + ", ".join(f"{measure} {figures['test'][measure]:.3f}" for measure in MEASURES), flush=True)

    def num_steps(self, student: str, stage: str) -> int:
        """The steps of a training that has this stage alone."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.seconds / self.step_seconds[student][stage]))

    def weigh(self, student: str, signals: Sequence[str]) -> None:
        """Finds the weights of signals that have none yet."""

        @cache
        def like_labels(signal: str) -> float:
            """The weight at which the gradient of the signal is as large as the labels' with weight 1."""
            stage, model = LABELS + AND + signal, self.untrained(student)
            options = {"logging_strategy": "steps", "logging_steps": 1, "log_gradient_norms": 1}
            weights = {LABELS: 1.0, signal: 1.0}
            trainer = self.train(student, model, stage, 0, weights, max_steps=STEPS_TO_WEIGH, **options)
            suggested = suggest_weights(trainer.state.log_history)
            return suggested[SIGNALS[signal][0]] / suggested["alpha_task"]

        own = self.weights.setdefault(student, {})
        missing = [signal for signal in signals if signal not in own]
        if not missing:
            return
        for signal in missing:
            if signal in DEFAULT_WEIGHTS:
                own[signal] = DEFAULT_WEIGHTS[signal]
            elif SIGNALS[signal][0] == "alpha_kl":
                own[signal] = DEFAULT_WEIGHTS["forward_kl"] * like_labels(signal) / like_labels("forward_kl")
            else:
                own[signal] = DEFAULT_WEIGHTS[LABELS] * like_labels(signal)
        write_json(self.output, self.measured)

    def time_steps(self, student: str, stages: Sequence[str]) -> None:
        """Measures the processor time of a step of each stage that has none yet, in turn."""
        own = self.step_seconds.setdefault(student, {})
        times: dict[str, list[float]] = {stage: [] for stage in stages if stage not in own}
        if not times:
            return
        for _, stage in itertools.product(range(ROUNDS), times):
            clock = StepClock()
            self.train(
                student, self.untrained(student), stage, 0, self.weights[student], clock, max_steps=STEPS_TO_TIME
            )
            times[stage].append(clock.seconds)
        own |= {stage: statistics.median(seconds) for stage, seconds in times.items()}
        write_json(self.output, self.measured)

    def train(
        self,
        student: str,
        model: PreTrainedModel,
        stage: str,
        seed: int,
        weights: Mapping[str, float],
        clock: StepClock | None = None,
        **options: object,
    ) -> DistillationTrainer:
        """Trains on the losses of a stage."""
        signals = stage.split(AND)
        losses = dict.fromkeys(["alpha_kl", "alpha_task", "alpha_cos"], 0.0)
        for signal in signals:
            alpha, more = SIGNALS[signal]
            losses |= {alpha: weights[signal], **more}
        if model.config.hidden_size != self.teacher.config.hidden_size:
            if losses["alpha_cos"] or "alpha_hidden" in losses:
                losses["project_hidden_states"] = True
            if "alpha_attention" in losses:
                losses["attention_heads"] = "mean"
        settings = {"learning_rate": STUDENTS[student], "per_device_train_batch_size": BATCH_SIZE}
        set_seed(seed)
        with TemporaryDirectory() as folder:
            args = DistillationTrainingArguments(
                folder, **{**common_options(seed), "logging_strategy": "no", **QUIET, **settings, **losses, **options}
            )
            trainer = DistillationTrainer(
                model,
                args,
                teacher_model=None if signals == [LABELS] else self.teacher,
                train_dataset=self.rows,
                processing_class=self.tokenizer,
                callbacks=[clock] if clock else None,
            )
            train_quietly(trainer)
        return trainer

    def untrained(self, student: str) -> PreTrainedModel:
        number = student.split()[0]
        return make_student(self.teacher, int(number)) if number.isdigit() else half_width(self.teacher)

    def logits(self, model: PreTrainedModel, name: str) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16_is_fast()):
            return predict(model.eval(), self.tokenizer, list(self.sentences[name]["text"]))

    def figures(self, model: PreTrainedModel, name: str) -> dict[str, float]:
        labels = list(self.sentences[name]["labels"])
        return classification_metrics(self.logits(model, name), labels, self.teacher_logits[name])

    def values(self, student: str, mix: str, seeds: Sequence[int], measure: str, part: str = "test") -> list[float]:
        """The measurements, one per seed."""
        return [self.trainings[self.name(student, mix, seed)][part][measure] for seed in seeds]

    @staticmethod
    def name(student: str, mix: str, seed: int) -> str:
        return f"{student}, {mix}, seed {seed}"


def half_width(teacher: PreTrainedModel) -> PreTrainedModel:
    """The teacher with half the width, half the heads and half the feed-forward width: the first half of every axis."""
    config = type(teacher.config).from_dict(teacher.config.to_dict())
    for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
        setattr(config, name, getattr(config, name) // 2)
    student = AutoModelForSequenceClassification.from_config(config)
    weights = teacher.state_dict()
    student.load_state_dict(
        {name: weights[name][tuple(map(slice, own.shape))].clone() for name, own in student.state_dict().items()}
    )
    return student


def load_sentences(folder: Path, num_train: int = 5000, num_validation: int = 1500) -> Sentences:
    """Film-review sentences with three classes. The teacher reads all of `num_train`; all else are short sentences."""
    corpus = load_corpus(folder, num_train + num_validation)
    ratings = dict(read_ratings(folder / SENTENCE_FILES[0]))

    def in_classes(rows: Dataset, first: int, number: int) -> Dataset:
        texts = list(rows["text"])[first : first + number]
        labels = [(ratings[text] > -1.5) + (ratings[text] > 1.5) for text in texts]
        return Dataset.from_dict({"text": texts, "labels": labels})

    def short(rows: Dataset) -> Dataset:
        return rows.filter(lambda row: len(row["text"].split()) <= MAX_WORDS)

    of_teacher = in_classes(corpus.train, 0, num_train)
    return {
        "teacher": of_teacher,
        "train": short(of_teacher),
        "validation": short(in_classes(corpus.train, num_train, num_validation)),
        "test": short(in_classes(corpus.test, 0, len(corpus.test))),
    }


def run(
    model_folder: Path,
    sentences: Sentences,
    output: Path,
    students: Sequence[str],
    mixes: Sequence[str],
    seeds: Sequence[int],
    seconds: float,
    num_steps: int | None = None,
) -> dict[str, dict]:
    """Runs the missing trainings on `mixes` of `MIXES`, prints the tables, and returns the figures.

    A training lasts `seconds`, or `num_steps` if given.
    """
    benchmark = Benchmark(model_folder, sentences, output, seconds, num_steps)
    for group in (SINGLE + COMBINED, VARIANTS):
        group = [mix for mix in mixes if mix in group]
        stages = list(dict.fromkeys(stage for mix in group for stage in mix.split(THEN)))
        signals = list(dict.fromkeys(signal for stage in stages for signal in stage.split(AND)))
        for student in students:
            benchmark.weigh(student, signals)
            if num_steps is None:
                benchmark.time_steps(student, stages)
        for seed, student, mix in itertools.product(seeds, students, group):
            benchmark.run(student, mix, seed)
    for student in students:
        print_table(benchmark, student, mixes, seeds)
    print_gains(benchmark, students, mixes, seeds)
    return benchmark.trainings


def print_table(benchmark: Benchmark, student: str, mixes: Sequence[str], seeds: Sequence[int]) -> None:
    """Prints the measures of a student for each mix."""
    of_teacher = [cell(measure, [benchmark.teacher_figures[measure]]) for measure in MEASURES]
    lines = [["the teacher itself", "", "", *of_teacher]]
    for mix in mixes:
        trainings = [benchmark.trainings[benchmark.name(student, mix, seed)] for seed in seeds]
        seconds = statistics.mean(own["seconds"] for own in trainings)
        cells = [cell(measure, benchmark.values(student, mix, seeds, measure)) for measure in MEASURES]
        lines.append([mix, AND.join(map(str, trainings[0]["steps"])), f"{seconds:.1f}", *cells])
    print(f"\n{student}; percent, KL in nats; mean ± standard deviation of {len(seeds)} seeds\n")
    print(table(["learns from", "steps", "seconds", *MEASURES.values()], lines))


def print_gains(benchmark: Benchmark, students: Sequence[str], mixes: Sequence[str], seeds: Sequence[int]) -> None:
    """Prints how much each mix adds to the labels alone, and which mix is best on the validation sentences."""

    def gains(student: str, mix: str) -> list[float]:
        return differences(*(benchmark.values(student, own, seeds, "accuracy") for own in (mix, LABELS)))

    def on_validation(mix: str) -> float:
        own = [benchmark.values(student, mix, seeds, "accuracy", "validation") for student in students]
        return statistics.mean(itertools.chain(*own))

    lines = []
    for mix in mixes:
        cells = [percents(gains(student, mix), "+.1f") for student in students]
        lines.append([mix, *cells, f"{100 * on_validation(mix):.1f}"])
    print("\nAccuracy over labels alone, seed by seed, in points; validation accuracy in percent\n")
    print(table(["learns from", *students, "validation, all students"], lines))
    print(f"\nBest on the validation sentences: {max(mixes, key=on_validation)}")
    if combined := [mix for mix in mixes if mix in COMBINED]:
        print(f"Best combination on the validation sentences: {max(combined, key=on_validation)}")


def cell(measure: str, values: Sequence[float]) -> str:
    return spread(values, ".3f") if measure == "kl_to_teacher" else percents(values)


@explains_fetch_errors
def main() -> int:
    parser = make_parser("signals", __doc__)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS), metavar="NAME")
    parser.add_argument(
        "--mixes", nargs="+", choices=MIXES, default=MIXES, metavar="MIX", help="losses, by default all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="processor time of a training")
    parser.add_argument("--steps", type=int, help="optimizer steps of a training, instead of --seconds")
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, folder = fetch(options.fetched)
    sentences = load_sentences(folder)
    of_all = options.seconds, options.steps
    run(model_folder, sentences, options.output, options.students, options.mixes, options.seeds, *of_all)
    return 0


if __name__ == "__main__":
    sys.exit(main())
