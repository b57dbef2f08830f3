"""Turns loaded rows into inputs of a model, with or without the teacher's stored outputs."""

from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_distill.lengths import check_length, length_of_rows
from hf_distill.tasks.data import MAX_LENGTH
from hf_distill.tasks.task import Reading, Task
from hf_distill.training import DistillationTrainingArguments, add_teacher_targets
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.teacher.loading import load_teacher
from hf_distill.training.teacher.targets import targets_of, with_columns

logger = logging.get_logger(__name__)


def encoded_rows(
    task: Task,
    training: DistillationTrainingArguments,
    reading: Reading,
    data: dict[str, Dataset],
    processor: Any,
) -> dict[str, Dataset]:
    """Encoded rows of each part of the data."""
    with training.main_process_first():
        return {part: task.encode_for(own, processor, reading, training) for part, own in data.items()}


def rows_with_targets(
    task: Task,
    training: DistillationTrainingArguments,
    reading: Reading,
    data: dict[str, Dataset],
    model: PreTrainedModel,
    tokenizer: Any,
) -> dict[str, Dataset]:
    """Encoded rows with stored teacher outputs. Clears the teacher from `training`, which no longer needs it."""
    name = training.teacher_model_name_or_path
    teacher, teacher_tokenizer = _load_teacher(task, training, model)
    clear_teacher(training)
    batch_size = training.per_device_eval_batch_size
    stored: dict[str, Any] = {"hidden_states": training.reads_hidden_states, "batch_size": batch_size}
    if find_head(teacher).over_vocabulary and isinstance(training.temperature, int | float):
        stored["temperature"] = training.temperature

    if task.gives_same_inputs(tokenizer, teacher_tokenizer):
        if MAX_LENGTH in reading:
            check_length(reading[MAX_LENGTH], teacher)
        rows = encoded_rows(task, training, reading, data, tokenizer)
        stored |= task.target_options(teacher, reading)
        return {part: add_teacher_targets(own, teacher, tokenizer, **stored) for part, own in rows.items()}
    if not task.reads_text:
        read = encoded_rows(task, training, reading, data, teacher_tokenizer)
        read = {part: add_teacher_targets(own, teacher, teacher_tokenizer, **stored) for part, own in read.items()}
        rows = encoded_rows(task, training, reading, data, tokenizer)
        return {part: with_columns(own, targets_of(read[part])) for part, own in rows.items()}
    if not task.text_columns:
        raise ValueError(
            f"The teacher {name} has a different tokenizer than the student, which {task.name} does not support: use a "
            f"teacher and a student with the same tokenizer."
        )
    if training.reads_hidden_states:
        raise ValueError(
            f"The teacher {name} has a different tokenizer than the student, so their hidden states belong to "
            f"different tokens: set alpha_cos=0."
        )
    truncation = reading.get("truncation", "head")
    if truncation == "head_tail":
        logger.warning(f"{name} uses its own tokenizer and keeps only the tail of texts that are too long for it.")
    teacher_tokenizer.model_max_length = length_of_rows(None, teacher_tokenizer, teacher)
    teacher_tokenizer.truncation_side = "right" if truncation == "head" else "left"
    stored = {"text_columns": list(task.text_columns), "batch_size": batch_size}
    data = {part: add_teacher_targets(own, teacher, teacher_tokenizer, **stored) for part, own in data.items()}
    return encoded_rows(task, training, reading, data, tokenizer)


def labelled_by_teacher(
    task: Task, training: DistillationTrainingArguments, reading: Reading, rows: Dataset, model: PreTrainedModel
) -> Dataset:
    """Training rows with labels by the teacher. Clears the teacher from `training` if no loss reads it."""
    teacher, processor = _load_teacher(task, training, model)
    labelled = task.label(rows, reading, teacher, processor, training.per_device_eval_batch_size)
    if not training.reads_teacher:
        clear_teacher(training)
    return labelled


def clear_teacher(training: DistillationTrainingArguments) -> None:
    """Removes the teacher from the options, because the training does not need it any more."""
    training.teacher_model_name_or_path = training.teacher_dtype = None
    training.teacher_quantization = training.teacher_device_map = None


def _load_teacher(
    task: Task, training: DistillationTrainingArguments, model: PreTrainedModel
) -> tuple[PreTrainedModel, Any]:
    """The teacher and its processor."""
    name = training.teacher_model_name_or_path
    assert name is not None  # only called with a teacher
    dtype = "auto" if training.teacher_dtype is None else getattr(torch, training.teacher_dtype)
    teacher = load_teacher(name, model, None, dtype, training.teacher_quantization, training.teacher_device_map)
    return teacher, task.load_processor(name, teacher)
