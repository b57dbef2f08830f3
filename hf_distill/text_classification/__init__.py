"""Text classification: from data to a model, and from a model to its figures."""

from hf_distill.text_classification.arguments import TextClassificationArguments
from hf_distill.text_classification.evaluation import classify_texts, evaluate_text_classifier
from hf_distill.text_classification.report import write_report
from hf_distill.text_classification.training import train_text_classifier

__all__ = [
    "TextClassificationArguments",
    "classify_texts",
    "evaluate_text_classifier",
    "train_text_classifier",
    "write_report",
]
