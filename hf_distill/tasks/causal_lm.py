"""Causal language modelling: the next token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peft import TaskType
from transformers import AutoModelForCausalLM

from hf_distill.data import DataCollatorForCausalLM
from hf_distill.tasks.language_modelling import LanguageModelling, LanguageModellingArguments


@dataclass
class CausalLMArguments(LanguageModellingArguments):
    """Model, teacher and texts of a causal language model's training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> CausalLMArguments(train_file="books.txt", documents="paragraph", max_length=512)
    """

    task: str = field(default="causal-lm", metadata={"help": "The task: a name that `hf-distill tasks` lists."})


class CausalLM(LanguageModelling):
    name = "causal-lm"
    pipeline_tag = "text-generation"
    summary = "the next token of a text"
    data = "text files, or text in JSON, JSON lines and Parquet"
    example = """\
teacher_model_name_or_path: openai-community/gpt2
dataset_name: Salesforce/wikitext
dataset_config_name: wikitext-103-raw-v1
train_split: train
validation_split: validation
max_length: 512
alpha_cos: 0.0
output_dir: outputs/student
"""
    arguments = CausalLMArguments
    auto_class = AutoModelForCausalLM
    head = "causal language modelling"
    lora_task_type = TaskType.CAUSAL_LM
    notes = (
        "Perplexity is over all tokens but the first of each text. A text that is longer than the model reads is cut "
        "into parts. Agreement is the share of tokens where both models find the same token most likely."
    )

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForCausalLM(processor)

    def scored(self, window, predictor, row):
        ids = np.array(window.ids)
        return window, np.arange(len(ids) - 1), ids[1:]
