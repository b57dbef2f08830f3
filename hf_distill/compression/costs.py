"""What students cost, known before any is trained: latency, size, operations and seconds per training step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback

from hf_distill.compression.directions import Sizes
from hf_distill.compression.latency import Cost, Latency, measure
from hf_distill.compression.workshop import ALL, BATCH_SIZE, USED, Workshop
from hf_distill.deployment.export import export_model
from hf_distill.deployment.formats import PYTORCH
from hf_distill.deployment.predictor import Predictor, load_predictor
from hf_distill.evaluation.benchmark import bytes_on_disk
from hf_distill.evaluation.benchmark_inputs import spread_over
from hf_distill.files import read_json, write_json
from hf_distill.progress import track
from hf_distill.student import make_student
from hf_distill.student.latency import Product, measure_products, products_of
from hf_distill.student.model_size import int8_bytes_of, operations_of
from hf_distill.training import DistillationTrainer

FILE = "costs.json"

NUM_TOKENS = 64
"""Tokens of the products that are measured. Times for other lengths are nearly proportional."""

CALIBRATED = ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.0, 0.5, 1.0))
"""Shares of layers, feed-forward width and hidden width of the cuts whose latency is measured at the start."""

STEPS = (0.5, 0.17, 0.5, 0.83)
"""Training steps that are tried, the first of which is not measured: where their rows are among all, sorted by length.

A training has steps of short rows and steps of long ones, because rows of similar length share a batch.
"""


@dataclass(frozen=True)
class Costs:
    """Predicts what students cost.

    Attributes:
        workshop: the teacher and the data.
        products: seconds of each matrix product.
        latency: predicts milliseconds from products.
        teacher_ms: the measured milliseconds of the teacher in PyTorch.
        step: seconds of a training step of a student, and seconds of the products of that student.
        answer: seconds from the end of a training to its measured products, per export.
    """

    workshop: Workshop
    products: Mapping[Product, float]
    latency: Latency
    teacher_ms: float
    step: tuple[float, float]
    answer: float

    @classmethod
    def open(cls, workshop: Workshop) -> "Costs":
        """Measures, unless the folder of the search has the figures already."""
        file = workshop.settings.folder / FILE
        with workshop.locked():
            if not file.is_file():
                write_json(file, _measured(workshop))
        content = read_json(file)
        products = {(inputs, outputs): seconds for inputs, outputs, seconds in content["products"]}
        step = (content["step"]["seconds"], content["step"]["products"])
        return cls(workshop, products, Latency(content["latency"]), content["teacher_ms"], step, content["answer"])

    def cost(self, sizes: Sizes) -> Cost:
        return _cost(self.workshop, sizes, self.products)

    def step_seconds(self, sizes: Sizes) -> float:
        """Seconds of a training step. A small student has the overhead of the large one that was tried."""
        seconds, products = self.step
        return seconds * (0.2 + 0.8 * self.cost(sizes).products / products)

    def megabytes(self, sizes: Sizes, vocabulary: str, format: str) -> float:
        """Megabytes of the weights in a format."""
        shape = self.workshop.directions.shape(sizes)
        size = int8_bytes_of(shape) if "int8" in format else 4.0 * shape.num_parameters()
        if vocabulary == USED:
            rows, width = shape.get_input_embeddings().weight.shape
            removed = rows - len(self.workshop.tokenizer(USED))
            size -= removed * width * (1 if "int8" in format else 4)
        return size / 1e6

    def operations(self, sizes: Sizes) -> int:
        """Multiplications per token."""
        return operations_of(self.workshop.directions.shape(sizes))

    def check_limits(self) -> None:
        """Raises `ValueError` if no student is within the limits."""
        settings, directions = self.workshop.settings, self.workshop.directions
        smallest = directions.shares(0.0, 0.0, 0.0)
        format, milliseconds = self.latency.fastest(self.cost(smallest))[0]
        if settings.max_ms is not None and milliseconds > settings.max_ms:
            raise ValueError(
                f"max_ms={settings.max_ms:g} cannot be met: the smallest student that this search cuts takes about "
                f"{milliseconds:.2f} ms in {format} (the teacher {self.teacher_ms:.2f} ms in PyTorch). Allow "
                f"more than that."
            )
        if settings.max_mb is not None:
            vocabulary = list(self.workshop.rows)[-1]
            megabytes = min(self.megabytes(smallest, vocabulary, own) for own in self.workshop.formats)
            if megabytes > settings.max_mb:
                raise ValueError(
                    f"max_mb={settings.max_mb:g} cannot be met: the smallest student that this search cuts has about "
                    f"{megabytes:.1f} MB. Allow more than that."
                )


def write_exports(
    student: PreTrainedModel, processor: Any, folder: Path, formats: Sequence[str], **options: Any
) -> None:
    """Saves a student, with exports in folders below. A format that is there already stays."""
    if not (folder / "config.json").is_file():
        student.save_pretrained(folder)
        processor.save_pretrained(folder)
    for format in formats:
        if format != PYTORCH and not (folder / format).exists():
            export_model(student, folder / format, format, tokenizer=processor, **options)


def load_product(folder: Path, format: str, workshop: Workshop, threads: int) -> Predictor:
    """Loads a student in a format, to read inputs as the teacher does."""
    predictor = load_predictor(folder, format, threads)
    predictor.read_texts(workshop.reading.get("max_length"), workshop.reading.get("truncation"))
    return predictor


def megabytes_on_disk(folder: Path, format: str) -> float:
    return bytes_on_disk(folder if format == PYTORCH else folder / format) / 1e6


def _measured(workshop: Workshop) -> dict[str, Any]:
    directions = workshop.directions
    shapes: set[Product] = set()
    for widths in directions.widths():
        shapes |= set(products_of(directions.shape({**directions.of_teacher(), **widths})))
    seconds = measure_products(shapes, NUM_TOKENS)
    formats = workshop.formats
    cuts = []
    for shares in CALIBRATED:
        sizes = directions.shares(*shares)
        if sizes not in cuts:
            cuts.append(sizes)
    costs = [_cost(workshop, sizes, seconds) for sizes in cuts]
    inputs = spread_over(workshop.inputs())
    with TemporaryDirectory(dir=workshop.settings.folder) as temporary:
        predictors: dict[tuple[int, str], Predictor] = {}
        started = time.perf_counter()
        for number, sizes in enumerate(track(cuts, "Measuring cuts without training", "cuts")):
            folder = Path(temporary, str(number))
            cut = _cut(workshop, sizes)
            write_exports(cut, workshop.processor, folder, formats, texts=inputs, min_agreement=0.0, min_cosine=-1.0)
            for format in {*formats, PYTORCH} if number == 0 else formats:
                predictors[number, format] = load_product(folder, format, workshop, workshop.settings.threads)
        num_exports = len(cuts) * max(1, len(formats) - (PYTORCH in formats))
        answer = (time.perf_counter() - started) / num_exports
        names = {str(key): predictor for key, predictor in predictors.items()}
        measured = measure(names, inputs)
        points = {
            format: [(cost, measured[str((number, format))]) for number, cost in enumerate(costs)] for format in formats
        }
        tried = directions.shares(0.5)
        step = _seconds_of_step(workshop, tried, Path(temporary, "steps"))
    return {
        "products": [[*product, own] for product, own in seconds.items()],
        "latency": dict(Latency.fit(points).weights),
        "teacher_ms": measured[str((0, PYTORCH))],
        "step": {"seconds": step, "products": _cost(workshop, tried, seconds).products},
        "answer": answer,
        "measured": [
            {"sizes": sizes, **{format: own[number][1] for format, own in points.items()}}
            for number, sizes in enumerate(cuts)
        ],
    }


def _cost(workshop: Workshop, sizes: Sizes, products: Mapping[Product, float]) -> Cost:
    shape = workshop.directions.shape(sizes)
    seconds = sum(products[product] * times for product, times in products_of(shape).items())
    return Cost(seconds, workshop.directions.num_layers(sizes))


def _cut(workshop: Workshop, sizes: Sizes) -> PreTrainedModel:
    changed = {name: size for name, size in sizes.items() if size != workshop.directions.by_name[name].largest}
    if not changed:
        return workshop.teacher
    return workshop.fitted(make_student(workshop.teacher, **workshop.cut_arguments(changed, ALL)))


class _Steps(TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def _seconds_of_step(workshop: Workshop, sizes: Sizes, folder: Path) -> float:
    """The mean seconds of a few training steps of a student."""
    student = _cut(workshop, sizes)
    if student is workshop.teacher:
        student = make_student(workshop.teacher, **workshop.cut_arguments(workshop.directions.shares(0.0), ALL))
    steps = _Steps()
    options: dict[str, Any] = {"max_steps": len(STEPS), "train_sampling_strategy": "sequential", "seed": 0}
    arguments = workshop.training_arguments(folder, workshop.searched_losses()[0], **options)
    task = workshop.settings.task
    trainer = DistillationTrainer(
        student,
        arguments,
        train_dataset=_rows_of_steps(workshop.rows[ALL], task.reads_text),
        data_collator=task.collator(workshop.processor, student),
        processing_class=workshop.processor,
        callbacks=[steps],
    )
    task.prepare(trainer, workshop.reading)
    trainer.train()
    return sum(steps.seconds[1:]) / len(steps.seconds[1:])


def _rows_of_steps(rows: Dataset, grouped: bool) -> Dataset:
    """The rows of the steps that are tried."""
    order = np.argsort([len(own) for own in rows["input_ids"]], kind="stable") if grouped else np.arange(len(rows))
    starts = [int(share * max(0, len(rows) - BATCH_SIZE)) for share in STEPS]
    return rows.select(np.concatenate([order[start : start + BATCH_SIZE] for start in starts]))
