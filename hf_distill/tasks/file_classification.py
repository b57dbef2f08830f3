"""What the tasks share that classify files: images and recordings."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, default_data_collator

from hf_distill.data.class_labels import SINGLE
from hf_distill.data.media import input_of
from hf_distill.evaluation.classification import top_k_accuracy
from hf_distill.tasks.classification import ClassificationTask
from hf_distill.tasks.task import Metric, Reading

TOP = 5


class FileClassification(ClassificationTask):
    """A classification of files.

    Attributes:
        file_column: column of the loaded rows with the files.
    """

    file_column: ClassVar[str]
    lora_task_type = None
    reads_text = False
    quality: ClassVar[Mapping[str, Metric]] = {
        "accuracy": ClassificationTask.quality["accuracy"],
        f"top_{TOP}_accuracy": Metric(f"top-{TOP} accuracy"),
        **ClassificationTask.quality,
    }
    notes = (
        f"Top-{TOP} accuracy is the share of inputs whose class is among the {TOP} most likely ones; it is given for "
        f"more than {TOP} classes. F1 is for the second class if there are two, else the mean over all classes. "
        f"Calibration error is the mean distance between confidence and accuracy, in 15 bins. KL(teacher || student) "
        f"is in nats at temperature 1, averaged over the inputs."
    )

    def collator(self, processor: Any, model: Any) -> Callable:
        return default_data_collator

    def inputs(self, rows: Dataset) -> list:
        return [input_of(file) for file in rows[self.file_column]]

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        found = super().compute_metrics(evaluated, rows, processor, reading)
        return found | _top(evaluated.predictions, evaluated.label_ids, reading)

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        found = super().metrics(predictions, rows, reading, teacher)
        return found if rows is None else found | _top(np.stack(predictions), list(rows["labels"]), reading)

    def words_of_input(self, rows: Dataset, row: int) -> str:
        return rows[row][self.file_column]["path"] or f"row {row + 1}"


def _top(logits: Any, labels: Any, reading: Reading) -> dict[str, float]:
    if reading.get("problem_type", SINGLE) != SINGLE or logits.shape[1] <= TOP:
        return {}
    return {f"top_{TOP}_accuracy": top_k_accuracy(logits, labels, TOP)}
