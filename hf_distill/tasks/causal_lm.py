"""Causal language modelling: the next token, of texts and of chats."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import numpy as np
from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distill.data import DataCollatorForCausalLM, encode_chats, load_chats, pack_chats
from hf_distill.data.chats import COMPLETION, MESSAGES, PROMPT, TooLong, encode_each_chat, has_chats
from hf_distill.data.corpus import load_rows
from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import EditedTokens
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.language_modelling import (
    NOTHING_READ,
    LanguageModelling,
    LanguageModellingArguments,
    Predicted,
    is_text_file,
    read_tokens,
    where_in,
)
from hf_distill.tasks.task import Reading
from hf_distill.training import DistillationTrainingArguments

PRESET: Mapping[str, float] = {"temperature": 1.0, "alpha_kl": 1.0, "alpha_task": 1.0, "alpha_cos": 0.0}
"""Losses of a causal language model by default: the KL divergence at temperature 1, and the labels.

Muralidharan et al., 2024, Compact Language Models via Pruning and Knowledge Distillation,
https://arxiv.org/abs/2407.14679, trained on the teacher's own pretraining data, and gained nothing from the labels. On
texts that the teacher predicts badly, the labels help: see recipes/smollm.
"""


@dataclass
class CausalLMArguments(LanguageModellingArguments):
    """Model, teacher and texts or chats of a causal language model's training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> CausalLMArguments(train_file="books.txt", documents="paragraph", max_length=512)
    """

    task: str = field(default="causal-lm", metadata={"help": "The task: a name that `hf-distill tasks` lists."})
    assistant_only_loss: bool = field(
        default=True,
        metadata={
            "help": "Of chats (columns messages, or prompt and completion), train only on what the assistant writes. "
            "False trains on every token."
        },
    )
    too_long: TooLong = field(
        default="error",
        metadata={
            "help": "Chats of more than max_length tokens: error; truncate, which cuts off their end; or leave_out."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.too_long not in get_args(TooLong):
            raise ValueError(f"too_long={self.too_long!r} must be one of {', '.join(get_args(TooLong))}.")


class CausalLM(LanguageModelling):
    name = "causal-lm"
    pipeline_tag = "text-generation"
    summary = "the next token of a text or of a chat"
    data = "text files; text, messages, or prompt and completion in JSON, JSON lines and Parquet"
    example = """\
teacher_model_name_or_path: openai-community/gpt2
dataset_name: Salesforce/wikitext
dataset_config_name: wikitext-103-raw-v1
train_split: train
validation_split: validation
max_length: 512
output_dir: outputs/student
"""
    arguments = CausalLMArguments
    auto_class = AutoModelForCausalLM
    head = "causal language modelling"
    lora_task_type = TaskType.CAUSAL_LM
    searched_losses: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "teacher and labels": PRESET,
        "teacher": {**PRESET, "alpha_task": 0.0},
    }
    notes = (
        "Perplexity is over all tokens but the first of each text. A text that is longer than the model reads is cut "
        "into parts. Of a chat, only what the assistant writes counts. Agreement is the share of tokens where both "
        "models find the same token most likely."
    )

    def with_default_weights(self, training: DistillationTrainingArguments) -> DistillationTrainingArguments:
        """`PRESET`, unless the user set the temperature or a weight."""
        fields = training.__dataclass_fields__
        names = {"temperature", *(f"alpha_{name}" for name in training.loss_weights)}
        has_teacher = training.teacher_model_name_or_path is not None
        if not has_teacher or any(getattr(training, name) != fields[name].default for name in names):
            return training
        training = copy.copy(training)
        for name, value in PRESET.items():
            setattr(training, name, value)
        if training.on_policy_fraction:
            training.alpha_task = 0.0  # the labels would be the student's own tokens
        return training

    def check(self, arguments: TaskArguments, training: DistillationTrainingArguments) -> None:
        if training.on_policy_fraction and arguments.store_teacher_targets:
            raise ValueError(
                f"on_policy_fraction={training.on_policy_fraction} needs the teacher in every step, because it reads "
                f"what the student writes: leave store_teacher_targets out."
            )
        packing = self.reading_of(arguments)["packing"]
        if training.on_policy_fraction and packing != "none":
            raise ValueError(
                f"on_policy_fraction={training.on_policy_fraction} needs one chat in a row, but packing={packing}: set "
                f"packing=none."
            )

    def load(self, source, reading, classes, *, split="train", config_name=None):
        options = where_in(source, split, config_name)
        if is_text_file(source) or not has_chats(load_rows(str(source), **options).column_names):
            return super().load(source, reading, classes, split=split, config_name=config_name)
        return load_chats(str(source), **options), None

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        if not has_chats(rows.column_names):
            return super().encode(rows, processor, reading)
        if reading["packing"] == "full_sentences":
            raise ValueError(
                "packing=full_sentences would let the answers of a chat see the chats before it: set packing=documents "
                "or none."
            )
        encoded = encode_chats(rows, processor, reading["max_length"], **_options(reading))
        return encoded if reading["packing"] == "none" else pack_chats(encoded, reading["max_length"])

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForCausalLM(processor)

    def inputs(self, rows: Dataset) -> list:
        return list(map(_text_of, rows)) if has_chats(rows.column_names) else super().inputs(rows)

    def predict(self, predictor: Predictor, rows: Dataset, reading: Reading, classes, done=None) -> list[Predicted]:
        if not has_chats(rows.column_names):
            return super().predict(predictor, rows, reading, classes, done)
        if predictor.folder is None:
            raise ValueError("Chats need the chat template, which is in the model's folder: load the model from there.")
        tokenizer = AutoTokenizer.from_pretrained(predictor.folder)
        max_length = min(reading["max_length"] or math.inf, predictor.encoder.max_length)
        encoded, is_kept = encode_each_chat(rows, tokenizer, max_length, **_options(reading))
        predicted = []
        for row, kept in zip(encoded, is_kept, strict=True):
            predicted.append(_read_answer(predictor, row) if kept else NOTHING_READ)
            if done is not None:
                done(1)
        return predicted

    def scored(self, window, predictor, row):
        ids = np.array(window.ids)
        return window, np.arange(len(ids) - 1), ids[1:]


def _options(reading: Reading) -> dict[str, Any]:
    """How chats are encoded."""
    return {name: reading[name] for name in ("assistant_only_loss", "too_long")}


def _read_answer(predictor: Predictor, row: Mapping[str, Any]) -> Predicted:
    """What a model predicts of the tokens of a chat that have labels."""
    ids, labels = row["input_ids"], np.array(row["labels"])
    places = np.flatnonzero(labels[1:] != IGNORE_INDEX)
    window = EditedTokens(ids, [0] * len(ids), [1] * len(ids), [0] * len(ids), [(0, 0)] * len(ids))
    (outputs,) = predictor.run([window])
    return read_tokens(outputs["logits"], places, labels[places + 1])


def _text_of(row: Mapping[str, Any]) -> str:
    """What is written in a chat, without a template."""
    parts = [row[MESSAGES]] if MESSAGES in row else [row[PROMPT], row[COMPLETION]]
    texts = [[part] if isinstance(part, str) else [message.get("content") or "" for message in part] for part in parts]
    return "\n".join(text for own in texts for text in own)
