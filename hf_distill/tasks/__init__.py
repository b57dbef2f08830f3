"""Text classification: from data to a model, and from a model to its figures."""

from hf_distill.tasks.arguments import TextClassificationArguments
from hf_distill.tasks.evaluation import classify_texts, evaluate_text_classifier
from hf_distill.tasks.report import write_report
from hf_distill.tasks.training import train_text_classifier

__all__ = [
    "TextClassificationArguments",
    "classify_texts",
    "evaluate_text_classifier",
    "train_text_classifier",
    "write_report",
]
