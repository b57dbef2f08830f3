"""Tasks that can be trained, evaluated and reported from the shell. Each task is one row of `TASKS`."""

from hf_distill.tasks.text_classification import (
    TEXT_CLASSIFICATION,
    TextClassificationArguments,
    classify_texts,
    evaluate_text_classifier,
    train_text_classifier,
    write_report,
)

TASKS = {"text-classification": TEXT_CLASSIFICATION}

__all__ = [
    "TASKS",
    "TextClassificationArguments",
    "classify_texts",
    "evaluate_text_classifier",
    "train_text_classifier",
    "write_report",
]
