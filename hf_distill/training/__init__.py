"""Training: the trainer, its arguments, the losses and the teacher."""

from hf_distill.training.trainer import DistillationTrainer
from hf_distill.training.training_args import DistillationTrainingArguments

__all__ = ["DistillationTrainer", "DistillationTrainingArguments"]
