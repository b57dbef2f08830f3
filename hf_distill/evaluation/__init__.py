"""After training: how good a model is."""

from hf_distill.evaluation.metrics import glue_metric

__all__ = ["glue_metric"]
