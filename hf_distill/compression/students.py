"""Makes the students of a search: cuts, trains, exports and measures one."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from hf_distill.compression.costs import Costs, load_product, megabytes_on_disk, write_exports
from hf_distill.compression.directions import NUM_LAYERS, Sizes
from hf_distill.compression.kept import Kept
from hf_distill.compression.workshop import ALL, Workshop
from hf_distill.copies import plain_copy
from hf_distill.deployment.formats import FORMATS, PYTORCH
from hf_distill.deployment.predictor import predictor_of
from hf_distill.embedding import EmbeddingModel
from hf_distill.evaluation.benchmark_inputs import spread_over
from hf_distill.student.width.sizes import KINDS
from hf_distill.tasks.cuts import cut_student
from hf_distill.tasks.data import note_reading
from hf_distill.tasks.models import load_trained
from hf_distill.training import DistillationTrainer

STUDENTS = "students"

RUNG = 0.5
"""Share of a training after which a student is compared with the others."""

RUNG_ROWS = 500
"""Validation rows of that comparison."""

LOST_IN_EXPORT = 0.02
"""Share that an export in int8 may lose, so that a slower format might keep enough."""

FAR = 0.1
"""How far below the share asked for a student is not exported any more."""


@dataclass(frozen=True)
class Recipe:
    """What a search chooses for one student.

    Attributes:
        sizes: its sizes, in all directions.
        layers: the strategy that chooses its layers.
        vocabulary: the name of its vocabulary.
        texts: the name of its training rows.
        losses: the name of the losses.
        learning_rate: the largest learning rate.
        steps: training steps. A student of the teacher's sizes has none: it is the teacher, in other formats.
    """

    sizes: Sizes
    layers: str
    vocabulary: str
    texts: str
    losses: str
    learning_rate: float
    steps: int

    @property
    def is_teacher(self) -> bool:
        """Whether this is the teacher itself, only exported."""
        return self.steps == 0


@dataclass(frozen=True)
class Product:
    """A student in one format.

    Attributes:
        format: the format.
        milliseconds: predicted time of one input.
        megabytes: size of its files.
        kept: the share of the teacher's quality on the validation rows.
    """

    format: str
    milliseconds: float
    megabytes: float
    kept: Kept

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Product":
        return cls(**record | {"kept": Kept(**record["kept"])})


@dataclass(frozen=True)
class Student:
    """A trained student.

    Attributes:
        number: its number in the study.
        recipe: what was chosen for it.
        source: number of the student that it was cut from; None if it was cut from the teacher.
        parameters: number of its parameters.
        operations: multiplications per token.
        seconds: seconds of its training.
        products: its formats that were measured.
    """

    number: int
    recipe: Recipe
    source: int | None
    parameters: int
    operations: int
    seconds: float
    products: Sequence[Product]

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Student":
        products = [Product.of(own) for own in record["products"]]
        return cls(**record | {"recipe": Recipe(**record["recipe"]), "products": products})


class Maker:
    """Makes students.

    Attributes:
        workshop: the teacher and the data.
        costs: what students cost.
    """

    def __init__(self, workshop: Workshop, costs: Costs):
        self.workshop, self.costs = workshop, costs

    def folder(self, number: int | str) -> Path:
        return self.workshop.settings.folder / STUDENTS / str(number)

    def make(
        self,
        number: int,
        recipe: Recipe,
        source: Student | None,
        seed: int,
        callbacks: Sequence[TrainerCallback] = (),
        at_rung: Callable[[float], None] | None = None,
        folder: Path | None = None,
        formats: Sequence[str] | None = None,
    ) -> Student:
        """Cuts, trains, saves, exports and measures a student.

        Args:
            number: its number in the study.
            recipe: what it is.
            source: the student that it is cut from; None for the teacher.
            seed: seed of its training.
            callbacks: callbacks of the trainer.
            at_rung: is called in the middle of the training with the share of the teacher's quality.
            folder: its folder. Default: the one of its number.
            formats: the formats to measure. Default: PyTorch and its fastest export.
        """
        folder = folder or self.folder(number)
        shutil.rmtree(folder, ignore_errors=True)
        model, processor = self._cut(recipe, source)
        processor.save_pretrained(folder)
        trainer = self._trainer(model, processor, recipe, seed, folder, callbacks)
        if at_rung is not None:
            trainer.add_callback(
                _Rung(int(RUNG * recipe.steps), lambda: at_rung(self._share(model, processor, folder)))
            )
        started = time.perf_counter()
        if not recipe.is_teacher:
            trainer.train()
        seconds = time.perf_counter() - started
        trainer.save_model()
        if trainer.state.global_step != recipe.steps:
            recipe = dataclasses.replace(recipe, steps=trainer.state.global_step)
        return Student(
            number,
            recipe,
            None if source is None else source.number,
            model.num_parameters(),
            self.costs.operations(recipe.sizes),
            seconds,
            self._products(model.float().cpu().eval(), processor, recipe, folder, formats),
        )

    def predictions(self, folder: Path, format: str, rows: Any) -> list:
        """Predictions of a student in a format, with this worker's share of the cores."""
        predictor = load_product(folder, format, self.workshop, torch.get_num_threads())
        return self.workshop.predictions(predictor, rows)

    def _cut(self, recipe: Recipe, source: Student | None) -> tuple[PreTrainedModel, Any]:
        workshop, processor = self.workshop, self.workshop.tokenizer(recipe.vocabulary)
        base, has = workshop.teacher, workshop.directions.of_teacher()
        vocabulary = ALL
        if source is not None:
            base = load_trained(workshop.settings.task, str(self.folder(source.number)))
            has, vocabulary = dict(source.recipe.sizes), source.recipe.vocabulary
        changed = {name: size for name, size in recipe.sizes.items() if size != has[name]}
        cut = workshop.cut_arguments(changed, ALL if recipe.vocabulary == vocabulary else recipe.vocabulary)
        if any(name.startswith(NUM_LAYERS) for name in changed):
            cut["layers"] = recipe.layers
        if cut.keys() & KINDS.keys():
            cut["width"] = "activation"
        if cut:
            collator = workshop.settings.task.collator(workshop.tokenizer(vocabulary), base)
            base = cut_student(base, cut, workshop.rows[vocabulary], collator, is_first=source is None)
        elif source is None:
            base = plain_copy(base)
        if isinstance(base, EmbeddingModel):
            base.tokenizer = processor
        base = workshop.fitted(base)
        note_reading(workshop.settings.task, workshop.reading, base, processor)
        return base, processor

    def _trainer(
        self,
        model: PreTrainedModel,
        processor: Any,
        recipe: Recipe,
        seed: int,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> DistillationTrainer:
        workshop, task = self.workshop, self.workshop.settings.task
        arguments = workshop.training_arguments(
            folder,
            recipe.losses,
            learning_rate=recipe.learning_rate,
            max_steps=recipe.steps,
            seed=seed,
            hub_model_id=workshop.settings.output.absolute().name,  # the title of the card
        )
        trainer = DistillationTrainer(
            model,
            arguments,
            train_dataset=workshop.training_rows(recipe.vocabulary, recipe.texts),
            data_collator=task.collator(processor, model),
            processing_class=processor,
            callbacks=[*callbacks],
        )
        trainer.pipeline_tag = task.pipeline_tag
        task.prepare(trainer, workshop.reading)
        return trainer

    def _share(self, model: PreTrainedModel, processor: Any, folder: Path) -> float:
        """The share that a model keeps on a part of the validation rows, in the middle of its training."""
        judge, was_training = self.workshop.judge.part(RUNG_ROWS), model.training
        predictor = predictor_of(model.eval(), processor, "student", folder=folder)
        predictor.read_texts(self.workshop.reading.get("max_length"), self.workshop.reading.get("truncation"))
        with torch.inference_mode():
            predictions = self.workshop.predictions(predictor, judge.rows)
        model.train(was_training)
        return judge.share(predictions)

    def _products(
        self,
        model: PreTrainedModel,
        processor: Any,
        recipe: Recipe,
        folder: Path,
        formats: Sequence[str] | None,
    ) -> list[Product]:
        """Measures the student in its fastest format, and in slower ones as long as it keeps almost enough."""
        workshop, judge = self.workshop, self.workshop.judge
        inputs = spread_over(workshop.inputs())
        cost = self.costs.cost(recipe.sizes)
        fastest = [own for own in self.costs.latency.fastest(cost) if formats is None or own[0] in formats]
        products: list[Product] = []
        for format in self._formats_to_measure(model, processor, folder, fastest):
            if format != PYTORCH:
                write_exports(model, processor, folder, [format], texts=inputs, min_agreement=0.0, min_cosine=-1.0)
            kept = judge.kept(self.predictions(folder, format, judge.rows))
            milliseconds = self.costs.latency.milliseconds(cost, format)
            products.append(Product(format, milliseconds, megabytes_on_disk(folder, format), kept))
            margin = kept.margin(workshop.settings.keep, workshop.test_units)
            if FORMATS[format].is_exact or not -LOST_IN_EXPORT < margin < 0:  # no slower one is better
                break
        return products

    def _formats_to_measure(
        self, model: PreTrainedModel, processor: Any, folder: Path, fastest: Sequence[tuple[str, float]]
    ) -> list[str]:
        """The formats, fastest first. A student that is far from what is asked for is not worth an export."""
        formats = [format for format, _ in fastest]
        if PYTORCH in formats and self._share(model, processor, folder) < self.workshop.settings.keep - FAR:
            return [PYTORCH]
        return formats


class _Rung(TrainerCallback):
    """Calls a function after some steps."""

    def __init__(self, step: int, reached: Callable[[], None]):
        self.step, self.reached = step, reached

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.reached()
