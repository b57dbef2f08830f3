"""The definition of a task: everything that training, evaluation, report and the command line need to know about it."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from peft import TaskType
from transformers import AutoTokenizer, EvalPrediction, PreTrainedConfig, PreTrainedModel

from hf_distill.deployment.heads import head_of_class
from hf_distill.deployment.predictor import Predictor
from hf_distill.evaluation.report import Metric
from hf_distill.optional import optional
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.classes import label_names_of
from hf_distill.tasks.processors import with_padding
from hf_distill.training import DistillationTrainer, DistillationTrainingArguments

Reading = dict[str, Any]
"""How a model reads data, by option: the fields that a task's arguments add to `TaskArguments`."""

Done = Callable[[int], object]
"""Is called with the number of rows that were just predicted."""


class Task(ABC):
    """A row of `TASKS`: one subclass in one file.

    Attributes:
        name: key in `TASKS`, such as `"text-classification"`.
        pipeline_tag: name of the task on the Hub.
        summary: what its models do, in one line.
        data: the columns and files that it reads.
        example: a complete YAML file for `hf-distill train`.
        arguments: dataclass of its options. The fields that it adds to `TaskArguments` say how data is read. They are
            saved in the config of the model, so that evaluation and report read data as in training.
        auto_class: auto class that loads a model with the task's head, such as `AutoModelForSequenceClassification`.
        head: name of that head in `hf_distill.deployment`.
        lora_task_type: name of the task in PEFT; None if it has none.
        metric_packages: optional packages that the metrics import.
        extra: extra of hf_distill that installs them.
        quality: metrics of the predictions, most important first; those that `metrics` returns are shown.
        fidelity: metrics of the comparison with the teacher.
        notes: what a report says of these metrics.
        has_classes: whether its models have named classes.
        text_columns: columns of the loaded rows that a teacher with a different tokenizer reads; empty if it cannot.
        takes_stored_targets: whether the teacher's outputs can be stored before training.
        reads_text: whether its models read texts, with a tokenizer. Otherwise a teacher whose outputs are stored may
            prepare its inputs in its own way.
        reads_no_head: whether its models have no head, as pretrained models before a fine-tuning.
        has_own_head: whether the head is new for each task, so that it is trained in full next to LoRA adapters.
        computes_metrics: whether training calls `compute_metrics`, which needs the logits of all rows in memory.
        stores_targets: whether they are stored by default, if no loss reads hidden states.
        published: published figures of other students, for the report.
        searched_losses: losses that `compress` tries, by name: training arguments.
    """

    name: ClassVar[str]
    pipeline_tag: ClassVar[str]
    summary: ClassVar[str]
    data: ClassVar[str]
    example: ClassVar[str]
    arguments: ClassVar[type[TaskArguments]]
    auto_class: ClassVar[type[Any]]
    head: ClassVar[str]
    lora_task_type: ClassVar[TaskType | None]
    metric_packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "metrics"
    quality: ClassVar[Mapping[str, Metric]]
    fidelity: ClassVar[Mapping[str, Metric]] = {}
    notes: ClassVar[str] = ""
    has_classes: ClassVar[bool] = True
    text_columns: ClassVar[tuple[str, ...]] = ()
    takes_stored_targets: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    reads_no_head: ClassVar[bool] = False
    has_own_head: ClassVar[bool] = True
    computes_metrics: ClassVar[bool] = True
    stores_targets: ClassVar[bool] = True
    published: ClassVar[Sequence[Mapping[str, Any]]] = ()
    searched_losses: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "teacher": {"alpha_kl": 1.0, "alpha_task": 0.0, "alpha_cos": 0.0},
        "teacher and labels": {"alpha_kl": 1.0, "alpha_task": 0.5, "alpha_cos": 0.0},
    }

    # How data is read

    def reading_of(self, arguments: TaskArguments) -> Reading:
        """The options that say how data is read, as set in the arguments."""
        return {name: getattr(arguments, name) for name in self.reading_defaults()}

    def reading_defaults(self) -> Reading:
        """The options that say how data is read, with their defaults."""
        return {own.name: own.default for own in self.reading_fields()}

    def reading_fields(self) -> list[dataclasses.Field]:
        """The fields that the task's arguments add to `TaskArguments`."""
        common = {field.name for field in dataclasses.fields(TaskArguments)}
        return [own for own in dataclasses.fields(self.arguments) if own.name not in common]

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        """Replaces options that are None by what a model was trained with.

        Args:
            reading: the options.
            configs: configs of the model and of its teacher, in this order, as far as they exist.
        """
        return reading

    # Data

    @abstractmethod
    def load(
        self,
        source: str,
        reading: Reading,
        classes: Sequence[str] | None,
        *,
        split: str = "train",
        config_name: str | None = None,
    ) -> tuple[Dataset, list[str] | None]:
        """Loads labelled rows.

        Args:
            source: a file, a folder or a Hub name.
            reading: the options that say how.
            classes: names of the classes, from a model, the teacher or the training data. None if they are unknown.
            split: split of a Hub dataset.
            config_name: configuration of a Hub dataset.

        Returns:
            The rows, and the names of the classes in the order of their numbers; None if the task has no classes.

        Raises:
            ValueError: for bad rows; it names the file and the rows.
        """

    @abstractmethod
    def load_unlabelled(
        self,
        source: str,
        reading: Reading,
        classes: Sequence[str] | None,
        *,
        split: str = "train",
        config_name: str | None = None,
    ) -> Dataset:
        """Loads rows with the same columns, whose labels mean that they are unknown."""

    def hold_out(self, rows: Dataset, share: float, seed: int) -> Mapping[str, Dataset]:
        """Splits rows at random into `"train"` and `"test"`, which has this share of them."""
        return rows.train_test_split(share, seed=seed)

    def variants(self, rows: Dataset, reading: Reading, classes: Sequence[str] | None) -> Dataset | None:
        """Rows like these, each a little different and without a label; None if the task cannot make any."""
        return None

    # Models

    def head_options(self, classes: Sequence[str] | None, reading: Reading) -> dict[str, Any]:
        """Options of `from_pretrained` for a model that gets a new head."""
        if classes is None:
            return {}
        return {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: number for number, name in enumerate(classes)},
            "ignore_mismatched_sizes": True,  # a head for another number of classes is replaced by a new one
        }

    def config_changes(self, reading: Reading) -> dict[str, Any]:
        """What changes in the config of every model that is trained, also of a student that is cut from a teacher."""
        return {}

    def classes_of(self, config: PreTrainedConfig) -> list[str] | None:
        """Names of a model's classes in the order of their numbers; None if the task has no classes."""
        return label_names_of(config) if self.has_classes else None

    def load_processor(self, name: str, model: PreTrainedModel) -> Any:
        """Loads what turns rows into inputs of the model: a tokenizer, or an image processor."""
        return with_padding(AutoTokenizer.from_pretrained(name), model)

    def gives_same_inputs(self, processor: Any, other: Any) -> bool:
        """Whether two processors turn a row into the same inputs of a model."""
        return processor.get_vocab() == other.get_vocab()

    def has_head(self, config: PreTrainedConfig) -> bool:
        """True if the config's model class has the task's head."""
        suffix = self.auto_class.__name__.removeprefix("AutoModel")
        return any(_fits(name, suffix, self.head) for name in config.architectures or [])

    def check_live_teacher(self, processor: Any, teacher: str) -> None:
        """Checks that a teacher that runs in every step can read the student's inputs.

        Raises:
            ValueError: if it prepares inputs in another way.
        """
        return

    def prepare_model(
        self, model: PreTrainedModel, processor: Any, reading: Reading, training: DistillationTrainingArguments
    ) -> PreTrainedModel:
        """The model to train, after model and processor are set up for the task. Called before rows are encoded."""
        return model

    # Training

    def with_default_weights(self, training: DistillationTrainingArguments) -> DistillationTrainingArguments:
        """The training arguments, with other loss weights if those that the user did not set do not suit the task."""
        return training

    def check(self, arguments: TaskArguments, training: DistillationTrainingArguments) -> None:
        """Checks options of the training that the task has its own rules for, before any file is read.

        Raises:
            ValueError: if they do not suit the data that the arguments name.
        """
        return

    def is_labelled_by_teacher(self, reading: Reading, has_unlabelled: bool) -> bool:
        """Whether the teacher labels training rows before the training."""
        return False

    def label(
        self, rows: Dataset, reading: Reading, teacher: PreTrainedModel, processor: Any, batch_size: int
    ) -> Dataset:
        """The training rows with labels by the teacher.

        Args:
            rows: the loaded training rows, unlabelled ones included.
            reading: the options.
            teacher: the teacher.
            processor: the teacher's processor.
            batch_size: rows per batch.
        """
        raise NotImplementedError

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        """Turns loaded rows into inputs of the model, with labels. A long row may become several."""

    def encode_for(
        self, rows: Dataset, processor: Any, reading: Reading, training: DistillationTrainingArguments
    ) -> Dataset:
        """As `encode`, for a task whose rows depend on the losses of the training."""
        return self.encode(rows, processor, reading)

    def target_options(self, teacher: PreTrainedModel, reading: Reading) -> dict[str, Any]:
        """Options of `add_teacher_targets` for encoded rows, such as how the teacher reads packed ones."""
        return {}

    def fit_to_teacher(
        self, student: PreTrainedModel, teacher: PreTrainedModel, rows: Dataset, reading: Reading
    ) -> PreTrainedModel:
        """The student to train in place of one that was just cut: its outputs must have the shape of the teacher's."""
        return student

    @abstractmethod
    def collator(self, processor: Any, model: PreTrainedModel) -> Callable:
        """The collator for encoded rows."""

    def compute_metrics(
        self, evaluated: EvalPrediction, rows: Dataset, processor: Any, reading: Reading
    ) -> dict[str, float]:
        """The metrics that training logs.

        Args:
            evaluated: outputs and labels of the encoded rows, in their order.
            rows: the loaded rows.
            processor: what encoded them.
            reading: the options.
        """
        raise NotImplementedError(f"{self.name} computes no metrics from the outputs of all rows.")

    def prepare(self, trainer: DistillationTrainer, reading: Reading) -> None:
        """Changes the trainer before the first step, now that student and teacher are known."""
        return

    def metrics_of_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Metrics that follow from the losses of an evaluation, such as the perplexity."""
        return {}

    # After training

    @abstractmethod
    def inputs(self, rows: Dataset) -> list:
        """What `Predictor.predict` reads, for each row."""

    @abstractmethod
    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list:
        """Predicts for loaded rows with a model of any format.

        Args:
            predictor: the model.
            rows: the rows.
            reading: the options.
            classes: names of the classes, in the order that the predictions shall have.
            done: is called with the number of rows after each batch.

        Returns:
            One prediction per row, as `metrics` reads it.
        """

    @abstractmethod
    def metrics(
        self, predictions: Sequence, rows: Dataset | None, reading: Reading, teacher: Sequence | None = None
    ) -> dict[str, float]:
        """Measures predictions.

        Args:
            predictions: one per row.
            rows: the rows with their labels, for the quality; None leaves it out.
            reading: the options.
            teacher: the teacher's predictions, for the fidelity; None leaves it out.
        """

    def units(self, rows: Dataset) -> np.ndarray:
        """The rows that are measured together, `[units, rows of each]`, such as the two texts of a scored pair."""
        return np.arange(len(rows))[:, None]

    def scores_of_units(
        self, metric: str, predictions: Sequence, rows: Dataset, reading: Reading, teacher: Sequence
    ) -> np.ndarray | None:
        """What a metric of quality or fidelity is computed from, for each unit. Resampling units is fast with it.

        Args:
            metric: name of the metric.
            predictions: one per row.
            rows: the rows with their labels.
            reading: the options.
            teacher: the teacher's predictions.

        Returns:
            `[units]` numbers whose mean is the metric; or `[units, 2]`, where the metric is the sum of the first column
            divided by that of the second, such as right words and words; None if it is neither.
        """
        return None

    def chance(self, metric: str, rows: Dataset, reading: Reading) -> float | None:
        """The value of a metric for a constant prediction; None if it is unknown."""
        return None

    def differences(self, predictions: Sequence, teacher: Sequence, reading: Reading) -> list[float]:
        """How much each prediction differs from the teacher's: 0 means not at all."""
        return [float(own != other) for own, other in zip(predictions, teacher, strict=True)]

    def words_of_input(self, rows: Dataset, row: int) -> str:
        """A row's input as words, for the examples of a report."""
        return str(self.inputs(rows.select([row]))[0])

    @abstractmethod
    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        """A row's label as words, for the examples of a report."""

    def words_of_prediction(
        self, prediction: Any, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None
    ) -> str:
        """A prediction as words, for the examples of a report."""
        return str(prediction)

    def plot(
        self, predictions: Mapping[str, Sequence], rows: Dataset, reading: Reading, folder: Path
    ) -> list[tuple[str, str]]:
        """Writes plots of the predictions of several models into a folder. Returns the title and the file of each."""
        return []

    def check_packages(self, *others: str) -> None:
        """Fails early if a package is missing.

        Raises:
            ImportError: if a package that the metrics need, or one of `others`, is not installed.
        """
        for module in self.metric_packages:
            optional(module, self.extra)
        for module in others:
            optional(module, "evaluation")


def _fits(model_class: str, suffix: str, head: str) -> bool:
    """Whether a model class has a head. The name decides only if the class is unknown: wav2vec 2.0 classifies audio."""
    known = _head_of(model_class)
    return known == head or (known is None and suffix in model_class)


def _head_of(model_class: str) -> str | None:
    """The name of a model class's head in `hf_distill.deployment`; None if it has none there."""
    try:
        return head_of_class(model_class)
    except ValueError:
        return None
