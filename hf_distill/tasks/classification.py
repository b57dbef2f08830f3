"""What all tasks share whose predictions are logits over classes, or one number: metrics, differences, words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedConfig

from hf_distill.data.class_labels import NUMBER, SEVERAL, SINGLE, ProblemType, unknown_label
from hf_distill.data.variants import vary_texts
from hf_distill.deployment.predictor import Predictor
from hf_distill.evaluation.classification import as_logits, classification_metrics, kl_of_rows
from hf_distill.evaluation.multi_label import kl_of_decisions, multi_label_metrics
from hf_distill.evaluation.plots import plot_calibration
from hf_distill.evaluation.regression import regression_metrics
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.classes import columns_by_name
from hf_distill.tasks.task import Done, Metric, Reading, Task


@dataclass
class LabelArguments(TaskArguments):
    """The options of tasks that classify: which labels the data has."""

    label_column: str = field(
        default="label", metadata={"help": "Column with the labels: class names, or class numbers from 0."}
    )
    problem_type: ProblemType | None = field(
        default=None,
        metadata={
            "help": "What a label is: single_label_classification, one class; multi_label_classification, a list of "
            "classes, or names separated by | in one cell; regression, a number. Default: what model or teacher was "
            "trained for, else one class."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.problem_type not in (None, *get_args(ProblemType)):
            choices = ", ".join(get_args(ProblemType))
            raise ValueError(f"problem_type={self.problem_type!r} must be one of {choices}.")


class ClassificationTask(Task):
    """A task that gives each row logits over classes. Its option `problem_type` says what they mean.

    Predictions are arrays `[classes]`, one per row. The labels are in the column `labels`.
    """

    metric_packages = ("sklearn.metrics", "scipy.stats")
    extra = "evaluation"
    quality: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("accuracy"),
        "f1": Metric("F1"),
        "matthews_correlation": Metric("Matthews"),
        "f1_micro": Metric("F1, micro"),
        "f1_macro": Metric("F1, macro"),
        "exact_match": Metric("exact match"),
        "spearmanr": Metric("Spearman"),
        "pearsonr": Metric("Pearson"),
        "mean_squared_error": Metric("mean squared error", ".4f", higher_is_better=False),
        "expected_calibration_error": Metric("calibration error", higher_is_better=False),
    }
    searched_losses: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **Task.searched_losses,
        "teacher at temperature 1": {**Task.searched_losses["teacher"], "temperature": 1.0},
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "agreement": Metric("agreement with the teacher"),
        "kl_to_teacher": Metric("KL to the teacher", ".4f", higher_is_better=False),
        "spearmanr_to_teacher": Metric("Spearman with the teacher"),
        "mean_squared_difference": Metric("mean squared difference", ".4f", higher_is_better=False),
    }

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        trained = [config for config in configs if self.has_head(config)]
        found = [problem_type_of(config) for config in trained]
        if len(set(found)) > 1:
            raise ValueError(
                f"The models have different problem types, {' and '.join(found)}: use models that predict the same."
            )
        problem_type = reading.get("problem_type") or next(iter(found), SINGLE)
        if found and found[0] != problem_type:
            raise ValueError(
                f"problem_type={problem_type}, but the model or its teacher is trained for {found[0]}: leave "
                f"problem_type out, or use another model."
            )
        return super().complete(reading, configs) | {"problem_type": problem_type}

    def variants(self, rows, reading, classes) -> Dataset | None:
        if not self.text_columns:
            return None
        texts = {column: rows[column][:] for column in self.text_columns}
        varied = {column: vary_texts(own) for column, own in texts.items()}
        unknown = unknown_label(reading["problem_type"], None if classes is None else len(classes))
        new = Dataset.from_dict({**varied, "labels": [unknown] * len(rows)}, features=rows.features)
        return new.select(
            [row for row in range(len(rows)) if any(varied[own][row] != texts[own][row] for own in texts)]
        )

    def head_options(self, classes, reading) -> dict[str, Any]:
        return {**super().head_options(classes, reading), "problem_type": reading["problem_type"]}

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        return _kind(reading).metrics(evaluated.predictions, evaluated.label_ids, None)

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[np.ndarray]:
        columns = columns_by_name(predictor.labels, predictor.labels if classes is None else classes, predictor.name)
        return [*predictor.logits(self.inputs(rows), done)[:, columns]]

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        labels = None if rows is None else list(rows["labels"])
        return _kind(reading).metrics(np.stack(predictions), labels, None if teacher is None else np.stack(teacher))

    def scores_of_units(self, metric, predictions, rows, reading, teacher) -> np.ndarray | None:
        if reading.get("problem_type", SINGLE) != SINGLE or metric not in ("accuracy", "agreement"):
            return None
        expected = rows["labels"][:] if metric == "accuracy" else np.stack(teacher).argmax(-1)
        return np.equal(np.stack(predictions).argmax(-1), expected).astype(float)

    def chance(self, metric, rows, reading) -> float | None:
        if reading.get("problem_type", SINGLE) != SINGLE or metric != "accuracy":
            return None
        return float(np.unique(rows["labels"][:], return_counts=True)[1].max() / len(rows))

    def differences(self, predictions, teacher, reading) -> list[float]:
        one, other = np.stack(predictions), np.stack(teacher)
        return _kind(reading).differences(torch.from_numpy(one).double(), torch.from_numpy(other).double()).tolist()

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return _kind(reading).words_of_label(rows[row]["labels"], classes)

    def words_of_prediction(self, prediction, rows, row, reading, classes) -> str:
        return _kind(reading).words_of_prediction(torch.from_numpy(prediction).double(), classes)

    def plot(self, predictions: Mapping[str, Sequence], rows, reading, folder: Path) -> list[tuple[str, str]]:
        if reading.get("problem_type", SINGLE) != SINGLE:
            return []
        file = "calibration.png"
        logits = {name: as_logits(np.stack(own), name) for name, own in predictions.items()}
        plot_calibration({name: (own.softmax(-1), list(rows["labels"])) for name, own in logits.items()}, folder / file)
        return [("Calibration", file)]


def problem_type_of(config: PreTrainedConfig) -> ProblemType:
    """What a trained model predicts, by its config."""
    return config.problem_type or (NUMBER if config.num_labels == 1 else SINGLE)


@dataclass(frozen=True)
class _Kind:
    """What depends on the problem type.

    Attributes:
        metrics: `(predictions, labels, teacher's predictions)` returns metrics.
        differences: `(predictions, teacher's predictions)`, each `[rows, classes]`, returns `[rows]`.
        words_of_label: `(label, classes)`.
        words_of_prediction: `(prediction, classes)`.
    """

    metrics: Callable[..., dict[str, float]]
    differences: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    words_of_label: Callable[[Any, Any], str]
    words_of_prediction: Callable[[torch.Tensor, Any], str]


def _class_and_share(logits: torch.Tensor, classes: Sequence[str]) -> str:
    share, number = logits.softmax(-1).max(-1)
    return f"{classes[int(number)]} {float(share):.0%}"


def _joined(chosen: Sequence[bool], classes: Sequence[str]) -> str:
    return ", ".join(name for name, own in zip(classes, chosen, strict=True) if own) or "none"


_KINDS = {
    SINGLE: _Kind(
        metrics=classification_metrics,
        differences=kl_of_rows,
        words_of_label=lambda label, classes: classes[label],
        words_of_prediction=_class_and_share,
    ),
    SEVERAL: _Kind(
        metrics=multi_label_metrics,
        differences=lambda student, teacher: kl_of_decisions(student, teacher).sum(-1),
        words_of_label=lambda label, classes: _joined([own == 1 for own in label], classes),
        words_of_prediction=lambda logits, classes: _joined((logits > 0).tolist(), classes),
    ),
    NUMBER: _Kind(
        metrics=regression_metrics,
        differences=lambda student, teacher: (student - teacher).abs().flatten(),
        words_of_label=lambda label, classes: f"{label:.4g}",
        words_of_prediction=lambda number, classes: f"{float(number):.4g}",
    ),
}


def _kind(reading: Reading) -> _Kind:
    return _KINDS[reading.get("problem_type", SINGLE)]
