"""Checks before the first step: options that would have no effect, and models that cannot be compared."""

import os
import platform
from typing import Any

import torch
from datasets import IterableDataset
from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy, has_length
from transformers.utils import logging

from hf_distill.data.causal import labels_no_end
from hf_distill.training.batches import is_of_transformers, text_in_column
from hf_distill.training.engines import check_engine
from hf_distill.training.scoring.heads import Head
from hf_distill.training.teacher.columns import SOURCE, JoinedSource, Source, source_of
from hf_distill.training.teacher.ensemble import TeacherEnsemble
from hf_distill.training.teacher.weights import check_column
from hf_distill.training.training_args import DistillationTrainingArguments

logger = logging.get_logger(__name__)


def check_kind_of_training(trainer: Trainer) -> None:
    """Checks everything that does not depend on the model's head.

    Raises:
        TypeError: if the model is not a transformers model.
        ValueError: if one process drives several GPUs, if the engine is FSDP1, if checkpoints would be pushed, or if an
            option would have no effect.
    """
    args, model = trainer.args, trainer.model
    if args.n_gpu > 1:
        raise ValueError(
            f"One process cannot drive {args.n_gpu} GPUs (DataParallel): start one process per GPU with `accelerate "
            f"launch` or `torchrun`, or select a single GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16=True would have no effect on the CPU, where losses are not scaled: use bf16=True.")
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value!r} would push optimizer states and local paths: use 'every_save' "
            f"to push the student at each checkpoint, or 'end'. Checkpoints to resume from stay in output_dir."
        )
    check_engine(trainer.accelerator)
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func would have no effect: to change a loss, override compute_loss.")
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise TypeError(
            f"model should be a transformers model, but is {type(model).__name__}: create it with "
            f"make_student(teacher) or AutoModelFor....from_pretrained(...)."
        )
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{model.peft_type.value} adds virtual tokens before the text, so the positions of student and teacher do "
            f"not match: use LoRA or another adapter that does not add tokens."
        )


def check_processes(args: DistillationTrainingArguments) -> None:
    """Checks that processes which were started together also train together.

    Accelerate groups processes automatically with accelerators such as GPUs, but on CPUs only with `use_cpu=True`.

    Raises:
        ValueError: if each process would train on its own, into the same folder.
    """
    num_started = int(os.environ.get("WORLD_SIZE", 1))
    if "LOCAL_RANK" in os.environ and num_started > 1 and args.world_size == 1:
        raise ValueError(
            f"{num_started} processes were started, but without an accelerator each would train its own student into "
            f"{args.output_dir}: set use_cpu=True to train one student on {num_started} CPU processes, or start a "
            f"single process."
        )


def warn_of_emulated_bfloat16(args: DistillationTrainingArguments) -> None:
    """Warns if bfloat16 is requested on a CPU that has no instructions for it."""
    asked = {"bf16": args.bf16, "bf16_full_eval": args.bf16_full_eval}
    asked["teacher_dtype"] = args.teacher_dtype if args.teacher_dtype == "bfloat16" else None
    asked = {name: value for name, value in asked.items() if value}
    if asked and args.device.type == "cpu" and not cpu_computes_in_bfloat16():
        options = " and ".join(f"{name}={value!r}" for name, value in asked.items())
        logger.warning(
            f"{options}: this CPU has no bfloat16 instructions (AVX512-BF16 or AMX), so PyTorch emulates them, which "
            f"is many times slower than float32: leave it out on this machine."
        )


def cpu_computes_in_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("architecture") != "x86_64":
            return True  # or unknown
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_student(student: PreTrainedModel, head: Head, args: DistillationTrainingArguments) -> None:
    """Checks that every option has an effect for the student's head.

    Raises:
        ValueError: if an option would have no effect.
    """
    name = type(student).__name__
    if args.kl_positions != "labels" and not head.per_token:
        raise ValueError(
            f"kl_positions={args.kl_positions!r} would have no effect for a {name}, because it has no logits per "
            f"token: leave it out."
        )
    is_read = head.distribution != "real" or args.reads_temperature_of_groups
    if args.temperature != DistillationTrainingArguments.temperature and not is_read:
        raise ValueError(
            f"temperature={args.temperature} would have no effect for a {name} that does regression: leave it out."
        )
    if args.label_smoothing_factor and not head.takes_label_smoothing:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} only works for single-label classification, not for "
            f"a {name} with problem_type={student.config.problem_type!r}: leave it out."
        )
    if getattr(student.config, "output_router_logits", False):
        raise ValueError(
            "output_router_logits=True would have no effect, because the load-balancing loss of experts is not "
            "supported: set it to False in the student's config."
        )


def check_datasets(train_dataset: object, eval_dataset: object) -> None:
    """Checks that no dataset is empty.

    Raises:
        ValueError: if a dataset is empty.
    """
    for name, dataset in _named(train_dataset, eval_dataset).items():
        if has_length(dataset) and len(dataset) == 0:
            raise ValueError(f"{name} is empty: it needs at least one row.")


def check_labels(train_dataset: object, eval_dataset: object, collator: object) -> None:
    """Checks that no label column is text, if a collator of transformers would convert it to a tensor.

    Raises:
        ValueError: if a label column is text.
    """
    for name, dataset in _named(train_dataset, eval_dataset).items() if is_of_transformers(collator) else ():
        features = getattr(dataset, "features", None) or {}
        for column in {"label", "labels"} & features.keys():
            if getattr(features[column], "dtype", None) in ("string", "large_string"):
                raise ValueError(f"{name}: {text_in_column(column)}")


def warn_of_ends_without_labels(head: Head, collator: Any) -> None:
    """Warns if a causal student would not learn when to stop."""
    if head.learns_to_stop and labels_no_end(collator):
        logger.warning(
            f"The tokenizer's pad_token equals its eos_token {collator.tokenizer.eos_token!r}, and "
            f"{type(collator).__name__} does not label it, so the student does not learn when to stop: use "
            f"DataCollatorForCausalLM(tokenizer), or another pad_token."
        )


def find_source(train_dataset: object, eval_dataset: object, is_needed: bool = False) -> Source | JoinedSource | None:
    """Finds the teacher whose targets the datasets have as columns; None if the first dataset has no targets.

    Args:
        train_dataset: the rows to train on.
        eval_dataset: the rows to evaluate on, or several sets of them by name.
        is_needed: whether there is no other teacher, and a loss reads one.

    Raises:
        ValueError: if another dataset has no targets, or targets of another teacher; or if a stream has targets
            without the record of their teacher.
    """
    named = _named(train_dataset, eval_dataset)
    sources = {name: source_of(dataset) for name, dataset in named.items()}
    if not sources:
        return None
    first, *others = sources
    source = sources[first]
    if is_needed or source is not None:
        for name, dataset in named.items():
            _check_record(name, dataset)
    for name in others if source is not None else []:
        if sources[name] != source:
            has = "no targets" if sources[name] is None else f"targets of the teacher {sources[name]}"
            raise ValueError(
                f"{first} has targets of the teacher {source}, but {name} has {has}: {_how_to_share(source)}."
            )
    return source


def check_targets(dataset: object, source: Source | JoinedSource) -> None:
    """Checks that a dataset has targets of the same teacher that the trainer was created with.

    Raises:
        ValueError: if the dataset has targets of another teacher.
    """
    other = source_of(dataset)
    if other is not None and other != source:
        raise ValueError(
            f"The dataset has targets of the teacher {other}, but the trainer was created with targets of the teacher "
            f"{source}: {_how_to_share(source)}, or create one trainer for each."
        )


def _check_record(name: str, dataset: object) -> None:
    """Checks that a stream with targets has the record of their teacher, which `map` drops. Reads the first row."""
    if isinstance(dataset, IterableDataset) and dataset.features is None and SOURCE in next(iter(dataset), {}):
        raise ValueError(
            f"{name} is a stream that has targets, but map dropped the record of their teacher: pass the features to "
            f"map, as in stream.map(function, features=stream.features), with those of new columns."
        )


def _how_to_share(source: Source | JoinedSource | None) -> str:
    if isinstance(source, Source) and source.is_imported:
        return "import both in one call of import_teacher_targets, as a DatasetDict"
    return "call add_teacher_targets with the same teacher for both"


def check_teacher_weights(train_dataset: object, eval_dataset: object, teacher: object) -> None:
    """Checks the column of weights, if there are several teachers with weights per row.

    Raises:
        ValueError: if a dataset lacks the column, or if a row has no valid weights.
    """
    if isinstance(teacher, TeacherEnsemble) and (column := teacher.args.teacher_weights_column) is not None:
        for name, dataset in _named(train_dataset, eval_dataset).items():
            check_column(name, dataset, column, len(teacher.teachers))


def _named(train_dataset: object, eval_dataset: object) -> dict[str, Any]:
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    named = {"train_dataset": train_dataset, **evaluated}
    return {name: dataset for name, dataset in named.items() if dataset is not None}
