"""What all students of a search share: the teacher, the data with its stored outputs, and what cuts will cost."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedModel

from hf_distill.compression.checks import check_identity, check_packages
from hf_distill.compression.data import Parts, load_parts, with_variants
from hf_distill.compression.directions import Directions, Sizes
from hf_distill.compression.kept import Judge, units_needed
from hf_distill.compression.settings import Settings
from hf_distill.deployment.heads import PREDICTION_HEADS, head_of_class
from hf_distill.deployment.predictor import Predictor
from hf_distill.files import read_json, write_json
from hf_distill.lengths import length_of_rows
from hf_distill.loading import load_config
from hf_distill.student import trim_vocabulary
from hf_distill.tasks.data import MAX_LENGTH, note_reading
from hf_distill.tasks.evaluation import load_reader
from hf_distill.tasks.models import load_trained
from hf_distill.tasks.registry import check_head
from hf_distill.tasks.rows import encoded_rows, labelled_by_teacher, rows_with_targets
from hf_distill.tasks.task import Reading
from hf_distill.training import DistillationTrainingArguments
from hf_distill.training.checks import cpu_computes_in_bfloat16
from hf_distill.training.teacher.targets import targets_of, with_columns

logger = logging.getLogger(__name__)

ALL, USED = "all", "used"
"""Vocabularies: the teacher's, and the tokens that the training texts use."""

LABELLED, SIMILAR = "labelled", "labelled and variants"
"""Training rows: those with labels; these and their variants; or `ALL`."""

NUM_ROWS = "num_rows.json"
"""How many of the first encoded rows are `LABELLED`, and how many `SIMILAR`."""

BATCH_SIZE = 32

SHARE_OF_READING = 0.1
"""Share of the budget that the teacher may read training rows in.

A student trains for a few percent of the budget, as did those that it was cut from, and reads rows about as fast as
the teacher. So it would never see more rows than these, and the time is better spent on its training.
"""

KEPT = "kept.json"
"""In the folder of a vocabulary: the teacher's ids of its tokens."""


@dataclass
class Workshop:
    """The teacher and the data of a search.

    Attributes:
        settings: what is asked for.
        reading: how rows are read.
        parts: the rows.
        teacher: the teacher, in fp32.
        processor: its tokenizer or image processor.
        directions: what can be cut.
        rows: encoded training rows with the teacher's outputs, by vocabulary: labelled ones, variants, others.
        judge: measures on the validation rows.
    """

    settings: Settings
    reading: Reading
    parts: Parts
    teacher: PreTrainedModel
    processor: Any
    directions: Directions
    rows: dict[str, Dataset]
    judge: Judge

    @classmethod
    def open(cls, settings: Settings) -> "Workshop":
        """Loads teacher and data, and computes what is not yet in the folder of the search.

        Raises:
            ValueError: if settings, teacher and data do not match, or cannot show what is asked for.
        """
        settings.check()
        task, args, name = settings.task, settings.data, settings.teacher
        check_packages(settings)
        _check_metric(settings)
        config = load_config(name)
        check_head(task, config, name)
        reading = task.complete(task.reading_of(args), [config])
        parts = load_parts(task, args, reading, name)
        teacher = load_trained(task, name)
        teacher.config.update(task.config_changes(reading))
        processor = task.load_processor(name, teacher)
        if MAX_LENGTH in reading:
            reading[MAX_LENGTH] = length_of_rows(reading[MAX_LENGTH], processor, teacher)
        note_reading(task, reading, teacher, processor)
        training = DistillationTrainingArguments(
            str(settings.folder), teacher_model_name_or_path=name, report_to="none", **_first(task.searched_losses)
        )
        teacher = task.prepare_model(teacher, processor, reading, training)
        judge, per_second = _judge(settings, reading, parts)
        check_identity(settings, judge.metric, parts)
        parts = _as_many_as_can_be_read(settings, reading, parts, per_second)
        workshop = cls(settings, reading, parts, teacher, processor, Directions.of(teacher), {}, judge)
        with workshop.locked():
            if settings.max_mb is not None and task.text_columns:
                workshop._trim_vocabulary()
                workshop.rows[USED] = workshop._kept_on_disk(USED, lambda: workshop._with_targets(training, USED))
                workshop.rows = {
                    ALL: workshop._kept_on_disk(ALL, lambda: workshop._encoded_again(training))
                } | workshop.rows
            else:
                workshop.rows[ALL] = workshop._kept_on_disk(ALL, lambda: workshop._with_targets(training, ALL))
        return workshop

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that students are measured in."""
        head = PREDICTION_HEADS[head_of_class(type(self.teacher).__name__)]
        return self.settings.tried_formats(head.generates)

    @property
    def test_units(self) -> int:
        """How many test rows, or groups of rows that are measured together, there are."""
        return len(self.settings.task.units(self.parts.test))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time computes what all share."""
        with FileLock(self.settings.folder / ".preparing.lock"):
            yield

    def searched_losses(self) -> list[str]:
        """The names of the losses that suit the data."""
        losses = self.settings.task.searched_losses
        return [name for name, own in losses.items() if self.parts.num_labelled or not own.get("alpha_task")]

    def training_arguments(self, folder: Path, losses: str, **options: Any) -> DistillationTrainingArguments:
        """The arguments of a student's training."""
        return DistillationTrainingArguments(
            str(folder),
            **self.settings.task.searched_losses[losses],
            **{
                "per_device_train_batch_size": BATCH_SIZE,
                "train_sampling_strategy": "group_by_length" if self.settings.task.reads_text else "random",
                "lr_scheduler_type": "linear",
                "warmup_steps": 0.1,
                "save_strategy": "no",
                "logging_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": not torch.accelerator.is_available(),
                "bf16": torch.accelerator.is_available() or cpu_computes_in_bfloat16(),
                **options,
            },
        )

    def cut_arguments(self, sizes: Sizes, vocabulary: str) -> dict[str, Any]:
        """Arguments of `make_student` for sizes and a vocabulary."""
        arguments: dict[str, Any] = dict(self.directions.arguments(sizes))
        if vocabulary == USED:
            arguments["vocabulary"] = read_json(self._vocabulary_folder() / KEPT)
        return arguments

    def fitted(self, student: PreTrainedModel) -> PreTrainedModel:
        """A student that was just cut, with outputs that can be compared with the teacher's."""
        return self.settings.task.fit_to_teacher(student, self.teacher, self.parts.train, self.reading)

    def tokenizer(self, vocabulary: str) -> Any:
        """The processor of students with this vocabulary."""
        return self.processor if vocabulary == ALL else AutoTokenizer.from_pretrained(self._vocabulary_folder())

    def predictions(self, predictor: Predictor, rows: Dataset) -> list:
        """A model's predictions, as the task's metrics read them."""
        return self.settings.task.predict(predictor, rows, self.reading, self.parts.classes)

    def inputs(self) -> list:
        """Inputs of the validation rows."""
        return self.settings.task.inputs(self.parts.validation)

    def training_rows(self, vocabulary: str, texts: str) -> Dataset:
        """Encoded training rows: one of `texts()`."""
        rows = self.rows[vocabulary]
        return rows if texts == ALL else rows.take(read_json(self.settings.folder / "rows" / NUM_ROWS)[texts])

    def texts(self) -> list[str]:
        """Which training rows a student may be trained on, the fewest first.

        The teacher is surer of rows that it was trained on, so other texts may teach more.
        """
        labelled, similar, train = self.parts.num_labelled, self.parts.num_similar, len(self.parts.train)
        choices = {LABELLED: 0 < labelled < train, SIMILAR: labelled < similar < train, ALL: True}
        return [name for name, is_one in choices.items() if is_one]

    def _kept_on_disk(self, name: str, make: Callable[[], Dataset]) -> Dataset:
        """Rows that are computed once.

        Images and recordings are decoded when they are read, so only their targets are stored, in the cache of
        `datasets`.
        """
        folder = self.settings.folder / "rows" / name
        if not folder.exists():
            rows = make()
            if rows.format["type"] == "custom":
                return rows
            unfinished = folder.with_name(f".{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            rows.save_to_disk(unfinished)
            unfinished.rename(folder)
        return load_from_disk(str(folder))

    def _with_targets(self, training: DistillationTrainingArguments, vocabulary: str) -> Dataset:
        """The encoded training rows, each with the teacher's output for it. A row may become several."""
        task, train = self.settings.task, self.parts.train
        labelled, similar = self.parts.num_labelled, self.parts.num_similar
        if task.is_labelled_by_teacher(self.reading, has_unlabelled=labelled < len(train)):
            train = labelled_by_teacher(task, training, self.reading, train, self.teacher)
        numbers = {LABELLED: range(labelled), SIMILAR: range(labelled, similar), ALL: range(similar, len(train))}
        parts = {name: train.select(own) for name, own in numbers.items() if own}
        read = rows_with_targets(task, training, self.reading, parts, self.teacher, self.tokenizer(vocabulary))
        folder = self.settings.folder / "rows"
        folder.mkdir(exist_ok=True)
        encoded = {name: len(read.get(name, ())) for name in (LABELLED, SIMILAR)}
        write_json(folder / NUM_ROWS, {LABELLED: encoded[LABELLED], SIMILAR: sum(encoded.values())})
        return concatenate_datasets([*read.values()]) if len(read) > 1 else next(iter(read.values()))

    def _encoded_again(self, training: DistillationTrainingArguments) -> Dataset:
        """The same rows in the teacher's vocabulary. Its outputs belong to texts here, not to tokens."""
        rows = encoded_rows(self.settings.task, training, self.reading, {"train": self.parts.train}, self.processor)
        return with_columns(rows["train"], targets_of(self.rows[USED]))

    def _trim_vocabulary(self) -> None:
        """Writes the tokenizer with the tokens that the training texts use."""
        folder = self._vocabulary_folder()
        if not folder.exists():
            texts = [text for column in self.settings.task.text_columns for text in self.parts.train[column]]
            trimmed = trim_vocabulary(self.teacher, self.processor, texts=texts)
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            trimmed.tokenizer.save_pretrained(unfinished)
            write_json(unfinished / KEPT, trimmed.kept)
            unfinished.rename(folder)

    def _vocabulary_folder(self) -> Path:
        return self.settings.folder / "vocabulary"


def _check_metric(settings: Settings) -> None:
    task, metric = settings.task, settings.metric
    of_teacher = [name for name, how in task.fidelity.items() if how.higher_is_better]
    if metric is not None and metric not in {*task.quality, *of_teacher}:
        raise ValueError(
            f"metric={metric!r} is not a metric of {task.name} whose share can be kept: use one of "
            f"{', '.join([*task.quality, *of_teacher])}."
        )


def _judge(settings: Settings, reading: Reading, parts: Parts) -> tuple[Judge, float]:
    """Chooses the metric, and checks that the teacher is worth it and that the test rows can show the share.

    Also returns how many rows the teacher predicts per second.
    """
    task, validation = settings.task, parts.validation
    start = time.perf_counter()
    teacher = task.predict(load_reader(settings.teacher, reading), validation, reading, parts.classes)
    per_second = len(validation) / (time.perf_counter() - start)
    judge = Judge(
        task, settings.metric or _default_metric(settings, reading, validation, teacher), validation, reading, teacher
    )
    value, chance = judge.measure(teacher), task.chance(judge.metric, validation, reading)
    if judge.how_shown().higher_is_better and (value <= 0 or (chance is not None and value <= chance)):
        always = "" if chance is None else f", and always the same answer gives {chance:.4g}"
        raise ValueError(
            f"The teacher {settings.teacher} is not better than guessing: its {judge.metric} is {value:.4g} on "
            f"{len(validation)} validation rows{always}. Train it first, or check the columns and the labels of the "
            f"data."
        )
    test_units = len(task.units(parts.test))
    units = len(judge.units())
    needed = units_needed(settings.keep, judge.teacher_error(), units)
    if test_units < needed:
        raise ValueError(
            f"{test_units} test rows are too few to show that {settings.keep:.1%} of the {judge.metric} is kept: "
            f"even if nothing is lost, it takes about {needed}. Give more rows, or a lower keep."
        )
    return judge, per_second


def _as_many_as_can_be_read(settings: Settings, reading: Reading, parts: Parts, per_second: float) -> Parts:
    """Adds variants, and leaves out unlabelled rows that the teacher could not read in a tenth of the budget.

    A search that goes on keeps its rows.
    """
    file = settings.folder / "training_rows.json"
    if not file.is_file():
        write_json(file, max(1, int(SHARE_OF_READING * settings.budget * per_second)))
    limited = with_variants(parts, settings.task, reading, read_json(file))
    if (left_out := len(parts.train) - (len(limited.train) - limited.num_variants)) > 0:
        logger.warning(
            "%d of %d training rows are left out, because the teacher reads %.0f rows per second: give a longer budget "
            "to use them",
            left_out,
            len(parts.train),
            per_second,
        )
    return limited


def _default_metric(settings: Settings, reading: Reading, validation: Dataset, teacher: Sequence) -> str:
    task = settings.task
    found = {}
    try:
        found = task.metrics(teacher, validation, reading)
    except ValueError as error:
        logger.info("The validation rows have no metric of quality: %s", error)
    for name in task.quality:
        if name in found:
            return name
    of_teacher = [name for name, metric in task.fidelity.items() if metric.higher_is_better]
    raise ValueError(
        f"keep needs a metric, but the validation rows have no labels or scores that one could be computed from: give "
        f"labelled rows, or set metric to compare with the teacher alone: {', '.join(of_teacher)}."
    )


def _first(losses: Any) -> dict[str, Any]:
    return dict(next(iter(losses.values())))
