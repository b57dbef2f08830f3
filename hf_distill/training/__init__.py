"""Training: the trainer, its arguments, the losses and the teacher."""

from hf_distill.training.checkpoints.runs import TrainingRun, model_identity
from hf_distill.training.checkpoints.stages import Stage, make_stages
from hf_distill.training.losses import Loss, Needs
from hf_distill.training.losses.gradient_norms import suggest_weights
from hf_distill.training.teacher.importing.targets import import_teacher_targets
from hf_distill.training.teacher.joining import join_teacher_targets
from hf_distill.training.teacher.targets import add_teacher_targets
from hf_distill.training.teacher.texts import add_teacher_texts
from hf_distill.training.teacher.transcripts import add_teacher_transcripts
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.training.training_args import DistillationTrainingArguments

__all__ = [
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "Loss",
    "Needs",
    "Stage",
    "TrainingRun",
    "add_teacher_targets",
    "add_teacher_texts",
    "add_teacher_transcripts",
    "import_teacher_targets",
    "join_teacher_targets",
    "make_stages",
    "model_identity",
    "suggest_weights",
]
