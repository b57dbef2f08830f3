"""Student and teacher under the engines that shard parameters: FSDP2 and DeepSpeed ZeRO-3."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, fsdp_utils
from torch import nn
from transformers import PreTrainedModel


def check_engine(accelerator: Accelerator) -> None:
    """Checks that the trainer supports the engine.

    Raises:
        ValueError: if the engine is FSDP1.
    """
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "FSDP1 is not supported: it flattens parameters, so the head cannot be run on its own. Use FSDP2: set "
            "fsdp_version: 2 in the config of `accelerate launch`, or fsdp_config={'version': 2} in the arguments."
        )


def reentrant_checkpointing(args: object, model: nn.Module) -> str | None:
    """Where reentrant gradient checkpointing is asked for, as written in the user's code; None if it is not.

    It computes layers without gradients at first, so what is read inside them would have no gradient.
    """
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if (getattr(args, name, None) or {}).get("use_reentrant"):
            return f"{name}={{'use_reentrant': True}}"
    for module in model.modules():
        if getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {}).get("use_reentrant"):
            return "model.gradient_checkpointing_enable({'use_reentrant': True})"
    return None


def is_zero3(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed shards the parameters."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return accelerator.state.deepspeed_plugin.zero_stage == 3


def loss_scale(accelerator: Accelerator) -> torch.Tensor | float:
    """The factor by which the engine multiplies the loss before the backward pass, so small fp16 gradients survive."""
    if accelerator.scaler is not None:
        return accelerator.scaler.scale(torch.ones((), device=accelerator.device))
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "fp16":
        return float(accelerator.deepspeed_engine_wrapped.engine.loss_scale())
    return 1.0


def compiled(accelerator: Accelerator, model: PreTrainedModel) -> nn.Module:
    """Compiles the model if Accelerate compiles the student, with the same options."""
    plugin = accelerator.state.dynamo_plugin
    return model if plugin.backend == DynamoBackend.NO else cast(nn.Module, torch.compile(model, **plugin.to_kwargs()))


def shard_teacher(accelerator: Accelerator, teacher: PreTrainedModel) -> nn.Module | None:
    """Shards the frozen teacher over the processes if the engine shards the student.

    Returns:
        The module to call instead of `teacher`; None if the engine does not shard parameters.
    """
    if accelerator.is_fsdp2:
        with one_group_for_head_and_embeddings(accelerator, teacher):
            return fsdp_utils.fsdp2_prepare_model(accelerator, teacher)
    if is_zero3(accelerator):
        import deepspeed

        config = accelerator.state.deepspeed_plugin.deepspeed_config
        kept = ("offload_param", "stage3_param_persistence_threshold")
        zero = {name: value for name, value in config["zero_optimization"].items() if name in kept and value != "auto"}
        precision = {name: config[name] for name in ("bf16", "fp16") if config.get(name, {}).get("enabled") is True}
        engine, *_ = deepspeed.initialize(
            model=teacher,
            config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, **zero}, **precision},
        )
        return engine
    return None


@contextmanager
def partial_optimizer_states(accelerator: Accelerator) -> Iterator[None]:
    """While open, FSDP2 loads an optimizer although parameters that never had a gradient have no state.

    A head has no gradient if no loss reads logits.
    """
    if not accelerator.is_fsdp2:
        yield
        return
    options_of = fsdp_utils._prepare_sd_options

    def partial(plugin):
        options = options_of(plugin)
        options.strict = False
        return options

    fsdp_utils._prepare_sd_options = partial
    try:
        yield
    finally:
        fsdp_utils._prepare_sd_options = options_of


def one_group_for_head_and_embeddings(accelerator: Accelerator, model: PreTrainedModel) -> AbstractContextManager[None]:
    """While open, Accelerate puts embeddings and head into FSDP2's root group.

    By default Accelerate shards them in a group of their own. torch refuses that for a head whose bias is tied too
    (BERT, RoBERTa), and running the head on its own would silently drop the gradient of tied embeddings.
    """
    return _without_embeddings(model) if accelerator.is_fsdp2 else nullcontext()


@contextmanager
def _without_embeddings(model: PreTrainedModel) -> Iterator[None]:
    no_split = model._no_split_modules
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    model._no_split_modules = [name for name in no_split or () if not name.endswith("Embeddings")]
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings
        model._no_split_modules = no_split
