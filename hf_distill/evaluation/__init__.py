"""After training: how good a model is."""

from hf_distill.evaluation.classification import classification_metrics
from hf_distill.evaluation.metrics import glue_metric

__all__ = ["classification_metrics", "glue_metric"]
