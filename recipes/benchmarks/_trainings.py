"""What the benchmarks of teachers and students of one task share: trainings that resume, sizes, speed and gains."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_distill import (
    DistillationTrainingArguments,
    benchmark_models,
    evaluate_model,
    export_model,
    make_student,
    train_model,
)
from recipes.benchmarks._common import PACKAGES, print_machine, print_versions, spread, write_json
from recipes.quickstart.train import bf16_is_fast

LAYERS = 3
"""Of the students. The teacher has 6."""

OPTIONS = {
    "per_device_train_batch_size": 16,
    "train_sampling_strategy": "group_by_length",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
LEARNING_RATES = {6: 1.5e-4, LAYERS: 3e-4}
"""Learning rate by number of layers, as in `where_distilling_pays`."""

LOSSES = {"alpha_kl": 5.0, "alpha_task": 2.0, "alpha_cos": 0.0}
"""The losses of a student with a teacher."""


class Trainings:
    """Trains and measures the models that are not yet in the file `output`, in a folder next to it.

    Args:
        output: JSON file with the figures, written after each training.
        test: file that models are measured on.
        epochs: epochs of every training.
        packages: packages whose versions are printed, besides those of every benchmark.
        shown: measure that is printed after each training.
    """

    def __init__(self, output: Path, test: Path, epochs: int, packages: Sequence[str], shown: str = "f1"):
        self.output, self.test, self.epochs, self.folder = output, test, epochs, output.with_suffix("")
        self.shown = shown
        self.results: dict[str, dict] = json.loads(output.read_text())["models"] if output.exists() else {}
        self.on = print_machine("device", "threads", "training")
        self.versions = print_versions([*PACKAGES, *packages])

    def train(self, name: str, args: Any, teacher: Path, seed: int, layers: int = LAYERS, **training: Any) -> None:
        """Trains a model into `folder / name`, unless it is there, and measures it next to its teacher.

        Options in `training` replace those of every training.
        """
        folder = self.folder / name
        if name in self.results and folder.exists():
            return
        options = {**OPTIONS, "seed": seed, "num_train_epochs": self.epochs, "learning_rate": LEARNING_RATES[layers]}
        options |= {"bf16": bf16_is_fast(), "use_cpu": not torch.accelerator.is_available()}
        train_model(args, DistillationTrainingArguments(str(folder), **options | training))
        self.results[name] = evaluate_model(folder, self.test, teacher=teacher)
        self.write()
        print(f"{name}: {self.shown} {self.results[name][self.shown]:.3f}", flush=True)

    def cut(self, auto_class: Any, start: Path) -> Path:
        """A model with fewer layers."""
        folder = self.folder / f"{start.name}, {LAYERS} layers"
        if not folder.exists():
            make_student(auto_class.from_pretrained(start), LAYERS).save_pretrained(folder)
            AutoTokenizer.from_pretrained(start).save_pretrained(folder)
        return folder

    def write(self, **more: object) -> None:
        measured = {"machine": self.on, "versions": self.versions, "models": self.results, **more}
        write_json(self.output, measured)

    def measure_speed(self, teacher: str, student: str, inputs: Sequence, lengths: Sequence[int], rounds: int) -> None:
        """Exports teacher and student, measures size, latency and quality of all, prints and writes them.

        Args:
            teacher: name of the teacher's training.
            student: name of a student's training.
            inputs: what the models read; the first 64 for the comparison of exports, the others for the latency.
            lengths: lengths in tokens.
            rounds: measured rounds.
        """
        models = {"teacher": self.folder / teacher, "student": self.folder / student}
        for role, folder in list(models.items()):
            for format in ("onnx", "onnx-int8"):
                models[f"{role}, {format}"] = export = self.folder / f"{folder.name}, {format}"
                if not export.exists():
                    export_model(folder, export, format, texts=inputs[:64])
        measured = benchmark_models(models, lengths=lengths, texts=inputs[64:], rounds=rounds)
        print(measured.table())
        speed = {name: {**own, **evaluate_model(models[name], self.test)} for name, own in measured.models.items()}
        self.write(speed=speed)


def percents(results: dict[str, dict], way: str, measure: str, seeds: Sequence[int]) -> list[float]:
    """A measure of the trainings `"<way> <seed>"` in percent."""
    return [100 * results[f"{way} {seed}"][measure] for seed in seeds]


def gain(results: dict[str, dict], way: str, other: str, measure: str, seeds: Sequence[int]) -> str:
    """How much better one way is than another, seed by seed, in percent: mean and standard deviation."""
    pairs = zip(percents(results, way, measure, seeds), percents(results, other, measure, seeds), strict=True)
    return spread([one - two for one, two in pairs], "+.1f")
