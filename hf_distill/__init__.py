"""Knowledge distillation with the HuggingFace `Trainer`."""

from hf_distill.config_files import parse_config
from hf_distill.evaluation import glue_metric
from hf_distill.student import describe, make_student
from hf_distill.training import (
    DistillationTrainer,
    DistillationTrainingArguments,
    load_corpus,
)
from hf_distill.version import __version__

__all__ = [
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "__version__",
    "describe",
    "glue_metric",
    "load_corpus",
    "make_student",
    "parse_config",
]
