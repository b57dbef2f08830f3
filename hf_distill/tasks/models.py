"""Loads the models of a task: fine-tuned, with a new head, cut from a teacher, or with LoRA adapters."""

import re
from collections.abc import Collection
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_distill.loading import load_config, load_pretrained
from hf_distill.student import make_student
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Reading, Task

logger = logging.get_logger(__name__)


def load_trained(task: Task, name: str) -> PreTrainedModel:
    """Loads a model that was fine-tuned for the task, in fp32.

    Raises:
        ValueError: if the model does not exist or has no trained head.
    """
    return load_pretrained(task.auto_class, name, config=load_config(name), dtype=torch.float32)


def load_model(
    task: Task,
    args: TaskArguments,
    reading: Reading,
    teacher: str | None,
    classes: list[str] | None,
    is_whole: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Loads the model to train, in fp32, and its processor.

    The model is `model_name_or_path`, with a head for the classes, or a cut teacher. With `is_whole`, the teacher is
    not cut.
    """
    if args.model_name_or_path is None:
        assert teacher is not None  # `_check` has refused options without either model
        model = load_trained(task, teacher)
        if not is_whole:
            model = make_student(model, num_layers=args.num_layers, layers=_layers(args.layers))
    else:
        model, info = task.auto_class.from_pretrained(
            args.model_name_or_path,
            **task.head_options(classes, reading),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        _warn_of_new_weights(model, info["missing_keys"])
    model.config.update(task.config_changes(reading))
    return model, task.load_processor(args.model_name_or_path or str(teacher), model)


def _warn_of_new_weights(model: PreTrainedModel, missing: Collection[str]) -> None:
    """A new head is expected, and a new pooler, which masked language models do not have."""
    body = f"{model.base_model_prefix}."
    new = sorted(name for name in missing if name.startswith(body) and not name.startswith(f"{body}pooler."))
    if new:
        logger.warning(
            f"{model.name_or_path} has no weights for {len(new)} tensors of {type(model).__name__}, such as {new[0]}: "
            f"they start as random numbers. Is it a model of this family?"
        )


def _layers(words: list[str] | None) -> str | list[int] | None:
    if words is None:
        return None
    numbers = [str(word).removeprefix("-").isdecimal() for word in words]
    if all(numbers):
        return [int(word) for word in words]
    if len(words) > 1:
        raise ValueError(f"layers={words} must be layer indices, such as 0 2 4, or one strategy, such as alternate.")
    return words[0]


def lora_config(task: Task, model: PreTrainedModel, rank: int) -> LoraConfig:
    """LoRA on all linear layers, with alpha twice the rank.

    A head that is new for each task is trained in full. So is a pooler, which may be newly initialised like the head.
    """
    backbone = model.base_model_prefix
    children = dict(model.named_children())
    if not task.has_own_head:
        return LoraConfig(
            task_type=task.lora_task_type, r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear"
        )
    head = [name for name, module in children.items() if name != backbone and list(module.parameters())]
    if getattr(model.base_model, "pooler", None) is not None:
        head.append(f"{backbone}.pooler")
    return LoraConfig(
        task_type=task.lora_task_type,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules="all-linear",
        exclude_modules=rf"({'|'.join(map(re.escape, head))})(\..*)?",
        modules_to_save=head,
    )
