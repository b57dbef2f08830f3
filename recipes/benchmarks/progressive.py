"""`python -m recipes.benchmarks.progressive`: one cut against progressive cuts, at equal training time.

The teacher is MiniLM with 6 layers of width 384, fine-tuned on film-review sentences. The student has half of its
layers, heads, hidden width and feed-forward width. It is cut at once and distilled; or it is cut in 2 or 3 rounds, and
distilled after each. Sizes between teacher and student are interpolated. All ways end with the same layers. The
units that stay are chosen by their activations on training sentences, in each round anew.

All ways get the same processor time for training: the time of a step is measured first, with each size of student. The
last round has half of the time, and the rounds before it share the other half equally. The teacher's logits are stored
once, and no way pays for them. In each round the student learns from them and from the labels, on short sentences, with
a new optimizer and a new learning rate schedule.

Figures are written after each training, and a second run continues from there.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
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
    QUIET,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    predict,
    print_machine,
    print_versions,
    silence,
    table,
    train_quietly,
    write_json,
)
from recipes.benchmarks.signals import MAX_WORDS, MEASURES, StepClock, cell
from recipes.benchmarks.where_distilling_pays import DISTILLATION, differences, percents
from recipes.quickstart.data import load_corpus, tokenize
from recipes.quickstart.fetch import fetch
from recipes.quickstart.students import trained_teacher
from recipes.quickstart.train import bf16_is_fast, common_options

WAYS = {"one cut": 1, "2 rounds": 2, "3 rounds": 3}
LEARNING_RATE = 6e-4
"""As for the student of half the width in `signals`."""

BATCH_SIZE = 32
STEPS_TO_TIME, TIMINGS = 8, 2
NUM_CALIBRATION, CALIBRATION_BATCH_SIZE = 256, 32

Sentences = dict[str, Dataset]
"""Columns `text` and `labels`: "teacher", "train" and "test". The teacher reads all sentences, students short ones."""

Sizes = dict[str, int]


class Benchmark:
    """Runs the trainings that are not yet in the file `output`, and writes them there."""

    def __init__(self, model_folder: Path, sentences: Sentences, output: Path, seconds: float):
        self.model_folder, self.sentences, self.output, self.seconds = model_folder, sentences, output, seconds
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        settings = {
            "sentences": {name: len(own) for name, own in sentences.items()},
            "seconds": seconds,
            "hf_distill": __version__,
        }
        earlier = json.loads(output.read_text()) if output.exists() else {}
        if earlier.get("settings") != settings:
            earlier = {}
        self.step_seconds: dict[str, float] = earlier.get("step_seconds", {})
        self.trainings: dict[str, dict] = earlier.get("trainings", {})
        self.teacher_figures: dict[str, float] = earlier.get("teacher") or self.figures(self.teacher)
        self.measured = {
            "machine": print_machine("device", "threads", "training"),
            "versions": print_versions([*PACKAGES, "datasets"]),
            "settings": settings,
            "teacher": self.teacher_figures,
            "step_seconds": self.step_seconds,
            "trainings": self.trainings,
        }

    @cached_property
    def teacher(self) -> PreTrainedModel:
        folder = self.output.parent / self.output.stem / "teacher"
        return trained_teacher(
            folder, self.model_folder, tokenize(self.sentences["teacher"], self.tokenizer), self.tokenizer, seed=0
        )

    @cached_property
    def rows(self) -> Dataset:
        """Training rows with the teacher's logits."""
        return add_teacher_targets(tokenize(self.sentences["train"], self.tokenizer), self.teacher, self.tokenizer)

    @cached_property
    def calibration_batches(self) -> list[dict[str, torch.Tensor]]:
        rows = tokenize(self.sentences["train"].take(NUM_CALIBRATION), self.tokenizer)
        collate = DataCollatorWithPadding(self.tokenizer)
        starts = range(0, len(rows), CALIBRATION_BATCH_SIZE)
        parts = [rows.select(range(start, min(start + CALIBRATION_BATCH_SIZE, len(rows)))) for start in starts]
        return [dict(collate(part.to_list())) for part in parts]

    @cached_property
    def teacher_logits(self) -> torch.Tensor:
        """For the test sentences."""
        return self.logits(self.teacher)

    def run(self, way: str, seed: int) -> dict:
        """Trains and measures one student, unless an earlier run did."""
        name = f"{way}, seed {seed}"
        if name in self.trainings:
            return self.trainings[name]
        rounds, shares = rounds_of(self.teacher.config, WAYS[way]), shares_of(WAYS[way])
        model, seconds, steps = self.teacher, 0.0, []
        for (kept, sizes), before, share in zip(rounds, [None, *rounds[:-1]], shares, strict=True):
            model = self.cut(model, kept if before is None else [before[0].index(layer) for layer in kept], sizes)
            steps.append(max(1, round(share * self.seconds / self.time_step(kept, sizes))))
            start = time.process_time()
            model = self.train(model, seed, steps[-1])
            seconds += time.process_time() - start
        figures = self.figures(model)
        self.trainings[name] = {"steps": steps, "seconds": seconds, "test": figures}
        write_json(self.output, self.measured)
        print(f"{name}: " + ", ".join(f"{measure} {figures[measure]:.3f}" for measure in MEASURES), flush=True)
        return self.trainings[name]

    def cut(self, model: PreTrainedModel, layers: list[int], sizes: Sizes) -> PreTrainedModel:
        return make_student(
            model, layers=layers, **sizes, width="activation", calibration_data=self.calibration_batches
        )

    def time_step(self, kept: list[int], sizes: Sizes) -> float:
        """The processor time of a step with a student of these sizes, measured once."""
        name = shown(kept, sizes)
        if name not in self.step_seconds:
            student, times = self.cut(self.teacher, kept, sizes), []
            for _ in range(TIMINGS):
                clock = StepClock()
                self.train(student, 0, STEPS_TO_TIME, clock)
                times.append(clock.seconds)
            self.step_seconds[name] = statistics.median(times)
            write_json(self.output, self.measured)
        return self.step_seconds[name]

    def train(self, model: PreTrainedModel, seed: int, steps: int, clock: StepClock | None = None) -> PreTrainedModel:
        options = {**common_options(seed), "logging_strategy": "no", **QUIET, **DISTILLATION}
        options |= {"per_device_train_batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "max_steps": steps}
        set_seed(seed)
        with TemporaryDirectory() as folder:
            trainer = DistillationTrainer(
                model,
                DistillationTrainingArguments(folder, **options),
                train_dataset=self.rows,
                processing_class=self.tokenizer,
                callbacks=[clock] if clock else None,
            )
            train_quietly(trainer)
            model.save_pretrained(folder)
            return AutoModelForSequenceClassification.from_pretrained(folder)  # without autocast in its forward

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16_is_fast()):
            return predict(model.eval(), self.tokenizer, list(self.sentences["test"]["text"]))

    def figures(self, model: PreTrainedModel) -> dict[str, float]:
        labels = list(self.sentences["test"]["labels"])
        return classification_metrics(self.logits(model), labels, self.teacher_logits)


def rounds_of(config: PreTrainedConfig, number: int) -> list[tuple[list[int], Sizes]]:
    """For each round, the teacher's layers and the sizes of its student. The last one has half of everything."""
    depth, heads = config.num_hidden_layers, config.num_attention_heads
    odd = list(range(depth))[1::2]
    rounds = []
    for done in range(1, number + 1):
        removed = odd[: round(len(odd) * done / number)]
        own_heads = heads - round((heads - heads // 2) * done / number)
        sizes = {
            name: getattr(config, name) // heads * own_heads
            for name in ("num_attention_heads", "hidden_size", "intermediate_size")
        }
        rounds.append(([layer for layer in range(depth) if layer not in removed], sizes))
    return rounds


def shares_of(number: int) -> list[float]:
    """The share of the training time that each round has."""
    return [1.0] if number == 1 else [0.5 / (number - 1)] * (number - 1) + [0.5]


def shown(kept: list[int], sizes: Sizes) -> str:
    return f"layers {' '.join(map(str, kept))}, width {sizes['hidden_size']}"


def short(rows: Dataset) -> Dataset:
    return rows.filter(lambda row: len(row["text"].split()) <= MAX_WORDS)


def run(
    model_folder: Path, sentences: Sentences, output: Path, ways: Sequence[str], seeds: Sequence[int], seconds: float
) -> dict[str, dict]:
    """Runs the missing trainings, prints the table, and returns the figures."""
    benchmark = Benchmark(model_folder, sentences, output, seconds)
    for seed in seeds:
        for way in ways:
            benchmark.run(way, seed)
    measured = {way: [benchmark.run(way, seed) for seed in seeds] for way in ways}

    teacher = [cell(measure, [benchmark.teacher_figures[measure]]) for measure in MEASURES]
    lines = [["the teacher itself", "", "", *teacher, ""]]
    alone = [own["test"]["accuracy"] for own in measured[ways[0]]]
    for way, trainings in measured.items():
        steps, spent = trainings[0]["steps"], [own["seconds"] for own in trainings]
        values = {measure: [own["test"][measure] for own in trainings] for measure in MEASURES}
        gain = "" if way == ways[0] else percents(differences(values["accuracy"], alone), "+.1f")
        cells = [cell(measure, own) for measure, own in values.items()]
        lines.append([way, " + ".join(map(str, steps)), f"{statistics.mean(spent):.1f}", *cells, gain])
    print(f"\nPercent, KL in nats; mean ± standard deviation of {len(seeds)} seeds\n")
    header = ["", "steps", "processor seconds", *MEASURES.values()]
    print(table([*header, f"accuracy over {ways[0]}, seed by seed"], lines))
    return benchmark.trainings


@explains_fetch_errors
def main() -> int:
    parser = make_parser("progressive", __doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time of a training")
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, folder = fetch(options.fetched)
    corpus = load_corpus(folder)
    sentences = {"teacher": corpus.train, "train": short(corpus.train), "test": short(corpus.test)}
    run(model_folder, sentences, options.output, options.ways, options.seeds, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
