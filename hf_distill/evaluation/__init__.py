"""Measures models after training: quality, size and speed."""

from hf_distill.evaluation.benchmark import Benchmark, benchmark_models
from hf_distill.evaluation.classification import classification_metrics
from hf_distill.evaluation.drafting import draft_metrics
from hf_distill.evaluation.embedding import agreement_metrics, retrieval_metrics, similarity_metrics
from hf_distill.evaluation.generation import summarization_metrics, translation_metrics
from hf_distill.evaluation.metrics import glue_metric
from hf_distill.evaluation.plots import plot_calibration, plot_quality_against_latency, plot_training_curves
from hf_distill.evaluation.question_answering import answer_metrics
from hf_distill.evaluation.ranking import ranking_metrics
from hf_distill.evaluation.tagging import tagging_metrics
from hf_distill.evaluation.transcription import transcription_metrics

__all__ = [
    "Benchmark",
    "agreement_metrics",
    "answer_metrics",
    "benchmark_models",
    "classification_metrics",
    "draft_metrics",
    "glue_metric",
    "plot_calibration",
    "plot_quality_against_latency",
    "plot_training_curves",
    "ranking_metrics",
    "retrieval_metrics",
    "similarity_metrics",
    "summarization_metrics",
    "tagging_metrics",
    "transcription_metrics",
    "translation_metrics",
]
