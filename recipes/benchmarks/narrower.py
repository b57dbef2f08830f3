"""`python -m recipes.benchmarks.narrower`: accuracy, size and speed of students that are cut in several directions.

The teacher is MiniLM with 6 layers, fine-tuned on film-review sentences. Its students have fewer layers, narrower
layers, a smaller vocabulary, or several of these. Each learns from the labels and the stored outputs of the teacher,
for the same number of steps with several seeds, and is exported to ONNX in fp32 and int8. One of the students is also
made by other ways to choose what stays, and trained on other losses.

Speed is measured at the end, for one sentence at a time with tokenization, as processor time on one thread. The models
take turns, so a machine that slows down affects all of them. Figures are written after each training, and a second run
continues from there.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    __version__,
    add_teacher_targets,
    classification_metrics,
    export_model,
    load_predictor,
    make_student,
    trim_vocabulary,
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
    train_quietly,
    write_json,
)
from recipes.benchmarks._narrower_figures import FORMATS, TEACHER, print_goals, print_tables, write_plot
from recipes.benchmarks.where_distilling_pays import DISTILLATION
from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.fetch import fetch
from recipes.quickstart.students import trained_teacher
from recipes.quickstart.train import bf16_is_fast, common_options

BATCH_SIZE = 32

VOCABULARY = 8000
"""Tokens of a trimmed vocabulary: the most frequent ones in the training sentences."""

NUM_CALIBRATION = 256
"""Training sentences from which it is measured which units matter."""

ROUNDS, TEXTS_PER_TURN = 20, 20
NUM_COMPARED = 32
"""Training sentences on which an export is compared with its student."""


@dataclass(frozen=True)
class Cut:
    """A student, as parts of its teacher.

    Attributes:
        num_layers: number of layers. Default: all.
        hidden: share of the hidden width and of the attention heads.
        feed_forward: share of the feed-forward width.
        trimmed: whether its vocabulary is trimmed.
        width: which units stay, as in `make_student`.
        trained: whether it is trained.
        losses: further training arguments. If they read hidden states, the teacher is live.
    """

    num_layers: int | None = None
    hidden: float = 1
    feed_forward: float = 1
    trimmed: bool = False
    width: str = "activation"
    trained: bool = True
    losses: dict[str, object] = field(default_factory=dict)

    @property
    def is_narrower(self) -> bool:
        return self.hidden < 1 or self.feed_forward < 1


STUDENTS = {
    "3 layers": Cut(3),
    "2 layers": Cut(2),
    "half width": Cut(hidden=1 / 2, feed_forward=1 / 2),
    "3 layers, half feed-forward": Cut(3, feed_forward=1 / 2),
    "3 layers, half width": Cut(3, hidden=1 / 2, feed_forward=1 / 2),
    "8,000 tokens, not trained": Cut(trimmed=True, trained=False),
    "3 layers, 8,000 tokens": Cut(3, trimmed=True),
    "3 layers, half feed-forward, 8,000 tokens": Cut(3, feed_forward=1 / 2, trimmed=True),
    "2 layers, half feed-forward, 8,000 tokens": Cut(2, feed_forward=1 / 2, trimmed=True),
    "3 layers, two thirds of the width, 8,000 tokens": Cut(3, hidden=2 / 3, feed_forward=1 / 2, trimmed=True),
    "3 layers, half width, 8,000 tokens": Cut(3, hidden=1 / 2, feed_forward=1 / 2, trimmed=True),
}

VARIED = "3 layers, half width"
PROJECTED = {"alpha_hidden": 1.0, "project_hidden_states": True}
VARIANTS = {
    f"{VARIED}, magnitude": Cut(3, hidden=1 / 2, feed_forward=1 / 2, width="magnitude"),
    f"{VARIED}, taylor": Cut(3, hidden=1 / 2, feed_forward=1 / 2, width="taylor"),
    f"{VARIED}, hidden states": Cut(3, hidden=1 / 2, feed_forward=1 / 2, losses=PROJECTED),
    f"{VARIED}, relations": Cut(3, hidden=1 / 2, feed_forward=1 / 2, losses={"alpha_relation": 1.0}),
}

LEARNING_RATE, NARROW_LEARNING_RATE = 9e-4, 6e-4
"""Learning rate of full hidden width, divided by the number of layers, and of narrower students. They are not tuned."""

Figures = dict[str, float]


class Benchmark:
    """Trains and measures what is not yet in the file `output`, and writes the figures there."""

    def __init__(self, model_folder: Path, corpus: Corpus, output: Path, steps: int):
        self.corpus, self.output, self.steps = corpus, output, steps
        self.folder = output.parent / output.stem
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        settings = {"sentences": len(corpus.train), "steps": steps, "hf_distill": __version__}
        earlier = json.loads(output.read_text()) if output.exists() else {}
        if earlier.get("settings") != settings:
            earlier = {}
        self.students: dict[str, dict[str, dict]] = earlier.get("students", {})
        self.speed: dict[str, Figures] = earlier.get("speed", {})
        self.teacher = trained_teacher(
            self.folder / TEACHER, model_folder, tokenize(corpus.train, self.tokenizer), self.tokenizer, seed=0
        )
        self.teacher_logits = predict(self.teacher, self.tokenizer, list(corpus.test["text"]))
        self.targets: Dataset = add_teacher_targets(
            corpus.train,
            self.teacher,
            self.tokenizer,
            text_columns="text",
            dtype="bfloat16" if bf16_is_fast() else None,
            output_dir=self.folder / "targets",
        )
        self.calibration = self.calibration_batches()
        self.measured = {
            "machine": print_machine("device", "threads", "training"),
            "versions": print_versions([*PACKAGES, "datasets", "onnxruntime"]),
            "settings": settings,
            "students": self.students,
            "speed": self.speed,
        }
        if TEACHER not in self.students:
            self.students[TEACHER] = {
                "0": self.measure(self.teacher, self.tokenizer, list(FORMATS), self.exports(TEACHER))
            }
            write_json(output, self.measured)

    def calibration_batches(self) -> list[dict[str, torch.Tensor]]:
        rows = self.corpus.train.select(range(min(NUM_CALIBRATION, len(self.corpus.train))))
        batches = []
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            inputs = self.tokenizer(part["text"], padding=True, truncation=True, return_tensors="pt")
            batches.append({**inputs, "labels": torch.tensor(part["labels"])})
        return batches

    def untrained(self, cut: Cut) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student and its tokenizer."""
        config, sizes = self.teacher.config, {}
        if cut.hidden < 1:
            sizes["hidden_size"] = round(config.hidden_size * cut.hidden)
            sizes["num_attention_heads"] = round(config.num_attention_heads * cut.hidden)
        if cut.feed_forward < 1:
            sizes["intermediate_size"] = round(config.intermediate_size * cut.feed_forward)
        if cut.is_narrower:
            sizes |= {"width": cut.width}
            if cut.width != "magnitude":
                sizes["calibration_data"] = self.calibration
        student = make_student(self.teacher, cut.num_layers or config.num_hidden_layers, **sizes)
        if not cut.trimmed:
            return student, self.tokenizer
        trimmed = trim_vocabulary(student, self.tokenizer, texts=list(self.corpus.train["text"]), keep=VOCABULARY)
        return trimmed.model, trimmed.tokenizer

    def run(self, name: str, cut: Cut, seed: int, kinds: Sequence[str], exports: Path | None = None) -> None:
        """Trains, exports and measures one student, unless an earlier run did."""
        own = self.students.setdefault(name, {})
        if str(seed) in own:
            return
        start = time.process_time()
        set_seed(seed)
        student, tokenizer = self.untrained(cut)
        if cut.trained:
            student = self.trained(student, tokenizer, cut, seed)
        seconds = time.process_time() - start
        figures = self.measure(student, tokenizer, kinds, exports)
        own[str(seed)] = {**figures, "seconds": seconds}
        write_json(self.output, self.measured)
        accuracies = ", ".join(f"{figures[kind]['accuracy']:.1%} in {kind}" for kind in FORMATS if kind in figures)
        print(f"{name}, seed {seed}: accuracy {accuracies}, trained in {seconds:.0f} s", flush=True)

    def trained(
        self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cut: Cut, seed: int
    ) -> PreTrainedModel:
        """Distils from the stored outputs, or from the live teacher if the losses read its hidden states."""
        options = {
            **common_options(seed),
            **DISTILLATION,
            **cut.losses,
            "learning_rate": NARROW_LEARNING_RATE
            if cut.hidden < 1
            else LEARNING_RATE / student.config.num_hidden_layers,
            "per_device_train_batch_size": BATCH_SIZE,
            "max_steps": self.steps,
            "logging_strategy": "no",
            **QUIET,
        }
        rows = tokenize(self.corpus.train if cut.losses else self.targets, tokenizer)
        with TemporaryDirectory() as folder:
            trainer = DistillationTrainer(
                student,
                DistillationTrainingArguments(folder, **options),
                teacher_model=self.teacher if cut.losses else None,
                train_dataset=rows,
                processing_class=tokenizer,
            )
            train_quietly(trainer)
            trainer.save_model()
            # Without the autocast that the training has wrapped around the model.
            return AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def exports(self, name: str) -> Path:
        """The folder for the exports of a model whose speed is measured."""
        return self.folder / name.replace(", ", "-").replace(" ", "-")

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kinds: Sequence[str], exports: Path | None
    ) -> dict:
        """Quality and size of a model. Its exports of these kinds stay in the folder `exports` if there is one."""
        texts = list(self.corpus.test["text"])
        compared = {"texts": list(self.corpus.train["text"])[:NUM_COMPARED], "min_agreement": 0.0}
        measured = {"parameters": model.num_parameters(), "fp32": self.quality(predict(model, tokenizer, texts))}
        with TemporaryDirectory() as temporary:
            for kind in kinds:
                folder = exports / kind if exports else Path(temporary, kind)
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
                export = export_model(model, folder, FORMATS[kind], tokenizer=tokenizer, **compared)
                if kind == "int8":
                    measured[kind] = self.quality(torch.as_tensor(load_predictor(folder, threads=1).logits(texts)))
                measured[kind]["megabytes"] = export.num_bytes / 1e6
        return measured

    def quality(self, logits: torch.Tensor) -> Figures:
        return classification_metrics(logits, list(self.corpus.test["labels"]), self.teacher_logits)

    def time(self, names: Sequence[str]) -> None:
        """Measures the milliseconds for one sentence of all models in turn, unless an earlier run did."""
        if set(names) <= set(self.speed):
            return
        models = {
            (name, kind): load_predictor(self.exports(name) / kind, threads=1) for name, kind in product(names, FORMATS)
        }
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in models}
        texts = list(self.corpus.test["text"])
        for turn in range(ROUNDS + 1):
            first = turn * TEXTS_PER_TURN % len(texts)
            for key, predictor in models.items():
                predictor.logits(texts[:1])  # the first forward after another model is slower
                for text in texts[first : first + TEXTS_PER_TURN]:
                    start = time.process_time()  # on one thread it is the latency, without what other processes take
                    predictor.logits([text])
                    if turn:  # the first turn warms up
                        seconds[key].append(time.process_time() - start)
        for (name, kind), own in seconds.items():
            self.speed.setdefault(name, {})[kind] = 1000 * statistics.median(own)
        write_json(self.output, self.measured)

    def values(self, name: str, kind: str, measure: str) -> list[float]:
        """The measurements, one per seed."""
        return [own[kind][measure] for own in self.students[name].values()]

    def shares(self, name: str, kind: str) -> dict[str, float]:
        """Parameters, milliseconds and mean accuracy, relative to the teacher in fp32."""
        return {
            "parameters": self.parameters(name) / self.parameters(TEACHER),
            "milliseconds": self.speed[name][kind] / self.speed[TEACHER]["fp32"],
            "accuracy": statistics.mean(self.values(name, kind, "accuracy"))
            / statistics.mean(self.values(TEACHER, "fp32", "accuracy")),
        }

    def parameters(self, name: str) -> int:
        return next(iter(self.students[name].values()))["parameters"]

    def megabytes(self, name: str, kind: str) -> float:
        return next(iter(self.students[name].values()))[kind]["megabytes"]


def run(
    model_folder: Path,
    corpus: Corpus,
    output: Path,
    seeds: Sequence[int],
    steps: int,
    students: Mapping[str, Cut] = STUDENTS,
    variants: Mapping[str, Cut] = VARIANTS,
) -> dict:
    """Runs the missing trainings, prints the tables, draws the plot next to `output`, and returns the figures.

    Args:
        model_folder: the pretrained model and its tokenizer.
        corpus: labelled sentences for training and testing.
        output: JSON file, which may already exist.
        seeds: one training of each student per seed.
        steps: optimizer steps of each training.
        students: the students, by name.
        variants: students of which only the accuracy is measured.
    """
    benchmark = Benchmark(model_folder, corpus, output, steps)
    for seed in seeds:
        for name, cut in students.items():
            if seed == seeds[0]:  # its exports are kept to measure their speed
                benchmark.run(name, cut, seed, list(FORMATS), benchmark.exports(name))
            else:
                benchmark.run(name, cut, seed, ["int8"])
        for name, cut in variants.items():
            benchmark.run(name, cut, seed, [])
    benchmark.time([TEACHER, *students])
    print_tables(benchmark, list(students), [VARIED, *variants] if variants else [])
    print_goals(benchmark, list(students))
    write_plot(output.with_suffix(".png"), benchmark, list(students))
    print(f"\nThe plot is {output.with_suffix('.png')}")
    return benchmark.measured


@explains_fetch_errors
def main() -> int:
    parser = make_parser("narrower", __doc__)
    add_fetched(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; one training each")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each training (default: 150)")
    parser.add_argument(
        "--students", nargs="+", choices=STUDENTS, metavar="NAME", help="students, by default all and their variants"
    )
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    students = {name: STUDENTS[name] for name in options.students or STUDENTS}
    variants = {} if options.students else VARIANTS
    run(model_folder, load_corpus(sentences), options.output, options.seeds, options.steps, students, variants)
    return 0


if __name__ == "__main__":
    sys.exit(main())
