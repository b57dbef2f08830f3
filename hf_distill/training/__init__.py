"""Training: the trainer, its arguments, the losses, the teacher and the data."""

from hf_distill.training.causal import DataCollatorForCausalLM
from hf_distill.training.corpus import load_corpus
from hf_distill.training.masking import DataCollatorForMaskedLM, count_tokens
from hf_distill.training.packing import SeparateDocuments, pack_documents, truncate_documents
from hf_distill.training.runs import TrainingRun, model_identity
from hf_distill.training.teacher_targets import add_teacher_targets
from hf_distill.training.texts import load_labelled_texts, load_unlabelled_texts
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.training.training_args import DistillationTrainingArguments
from hf_distill.training.truncation import encode_texts

__all__ = [
    "DataCollatorForCausalLM",
    "DataCollatorForMaskedLM",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "SeparateDocuments",
    "TrainingRun",
    "add_teacher_targets",
    "count_tokens",
    "encode_texts",
    "load_corpus",
    "load_labelled_texts",
    "load_unlabelled_texts",
    "model_identity",
    "pack_documents",
    "truncate_documents",
]
