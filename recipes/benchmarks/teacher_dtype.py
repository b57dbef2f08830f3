"""`python -m recipes.benchmarks.teacher_dtype`: what the teacher's dtype does to the time of a step and to its losses.

The teacher is the fine-tuned one of `make quickstart`, the student is cut from it, and the batch is of real sentences.
A step is the teacher's forward pass and the student's forward and backward pass, without the optimizer.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, set_seed
from transformers.utils import is_bitsandbytes_available

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from recipes.benchmarks.split_invariance import print_versions, table, write_json
from recipes.quickstart.data import Corpus, load_corpus, tokenize

BATCH_SIZE = 64
TEACHERS = {
    "float32": {"teacher_dtype": "float32"},
    "bfloat16": {"teacher_dtype": "bfloat16"},
    "float16": {"teacher_dtype": "float16"},
    "8bit": {"teacher_quantization": "8bit"},
    "4bit": {"teacher_quantization": "4bit"},
}
AUTOCAST = {"bf16": True, "off": False}
LOSSES = ["loss_kl", "loss_cos"]
PACKAGES = ["hf_distill", "torch", "transformers", "accelerate"]


def make_trainer(teacher_folder: Path, rows, autocast: str, teacher: str) -> DistillationTrainer:
    """A trainer whose one step has been done, at a learning rate of 0; what it logged is in its `state`."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    args = DistillationTrainingArguments(
        output_dir=str(teacher_folder.parent / "unused"),
        teacher_model_name_or_path=str(teacher_folder),
        per_device_train_batch_size=len(rows),
        bf16=AUTOCAST[autocast],
        max_steps=1,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **TEACHERS[teacher],
    )
    student = make_student(AutoModelForSequenceClassification.from_pretrained(teacher_folder))
    trainer = DistillationTrainer(student, args, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    set_seed(0)  # the same dropout beside every teacher
    trainer.train()
    return trainer
