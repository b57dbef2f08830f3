"""The gradient norm of each loss by itself, and weights that balance the losses."""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_distill.training.engines import loss_scale, reentrant_checkpointing

logger = logging.get_logger(__name__)

PREFIX = "grad_norm_"
"""`grad_norm_<loss>` is the entry of a loss in the log."""

MOST = 1000
"""A warning is logged if one loss has this many times the gradient of another."""


class GradientNorms(TrainerCallback):
    """Measures the gradient norm of each loss, and keeps the means over the measured steps since the last log.

    Args:
        trainer: the `DistillationTrainer`.

    Attributes:
        batches: the micro-batches of the coming optimizer step; None if it is not measured.
        items: `[losses]`, the items of each loss in that step, over all processes.
    """

    batches: Sequence[dict[str, torch.Tensor]] | None
    items: torch.Tensor

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.has_warned = False
        self.reset()

    def reset(self) -> None:
        """Clears all measurements."""
        self.batches = None
        self._norms: list[torch.Tensor] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.reset()

    def expect(self, batches: Sequence[dict[str, torch.Tensor]], items: torch.Tensor) -> None:
        """Takes the coming optimizer step, if it is to be measured: every N-th with `log_gradient_norms=N`.

        Args:
            batches: its micro-batches on this process.
            items: `[losses]`, the items of each loss, over all processes.
        """
        every = self.trainer.args.log_gradient_norms
        if every and (self.trainer.state.global_step + 1) % every == 0:
            self.batches, self.items = batches, items

    def measure(self, model: nn.Module, run_losses: Callable) -> None:
        """Measures the step that was taken. Call it before the first forward of the step.

        Each loss has forward passes of its own, on the same batches and with the same dropout as the training. They
        leave no trace: not in `.grad`, in buffers, or in random states.

        Args:
            model: the student, in training mode.
            run_losses: `(model, inputs, scored, losses, factors)` returns outputs with the weighted sum of the losses.
        """
        trainer, batches = self.trainer, self.batches or []
        self.batches = None
        model = trainer.accelerator.unwrap_model(model)  # DDP would wait for a backward pass
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norms = []
        for index, (name, loss) in enumerate(trainer.losses.items()):
            gradient = GradientSum(parameters, loss_scale(trainer.accelerator))
            factor = 1 / self.items[index : index + 1].clamp(min=1)
            with unchanged([model, loss], trainer.args.device):
                for position, batch in enumerate(batches):
                    inputs = trainer._prepare_inputs(batch)
                    with trainer._whole_step.at(position):
                        _, output = run_losses(model, inputs, trainer._score(inputs), {name: loss}, factor)
                    gradient.add(output.loss)
            norms.append(gradient.norm(trainer.accelerator))
        self._norms.append(torch.stack(norms))

    def take(self, names: Collection[str], weights: torch.Tensor) -> dict[str, float]:
        """The means since the last call, as log entries; empty if no step was measured.

        Warns once if one loss, with its weight, has 1000 times the gradient of another.

        Args:
            names: the names of the losses.
            weights: `[losses]`, their weights.
        """
        if not self._norms:
            return {}
        norms, self._norms = torch.stack(self._norms).mean(0), []
        weighted = {name: norm for name, norm in zip(names, (norms * weights).tolist(), strict=True) if norm > 0}
        if weighted and not self.has_warned and self.trainer.is_world_process_zero():
            largest, smallest = max(weighted, key=weighted.__getitem__), min(weighted, key=weighted.__getitem__)
            if weighted[largest] >= MOST * weighted[smallest]:
                self.has_warned = True
                logger.warning(
                    f"With their weights, loss_{largest} has {weighted[largest] / weighted[smallest]:,.0f} times the "
                    f"gradient of loss_{smallest} ({weighted[largest]:.3g} and {weighted[smallest]:.3g}), which hardly "
                    f"changes the student. suggest_weights(trainer.state.log_history) gives weights that balance them."
                )
        return {f"{PREFIX}{name}": norm for name, norm in zip(names, norms.tolist(), strict=True)}


class GradientSum:
    """The sum of gradients with respect to some parameters, in fp32. Leaves `.grad` unchanged.

    Args:
        parameters: the parameters.
        scale: the factor of the loss in the backward pass, so that small fp16 gradients survive.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], scale: torch.Tensor | float = 1.0):
        self.parameters, self.scale = parameters, scale
        self.sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]

    def add(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a loss, a tensor of shape `[]`."""
        if not loss.requires_grad:  # it has no items
            return
        gradients = torch.autograd.grad(loss * self.scale, self.parameters, allow_unused=True)
        for own, gradient in zip(self.sums, gradients, strict=True):
            if gradient is not None:
                own += gradient

    def norm(self, accelerator: Accelerator) -> torch.Tensor:
        """The norm of the sum over all processes, a tensor of shape `[]`."""
        squares = [accelerator.reduce(own, reduction="sum").square().sum() for own in self.sums]
        return torch.stack(squares).sum().sqrt() / self.scale


@contextmanager
def unchanged(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Restores the random states and the modules' buffers at the end, so a training does not notice the forwards."""
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class MeasuringArguments(Protocol):
    """The training arguments that `check_gradient_norms` reads."""

    log_gradient_norms: int


def check_gradient_norms(args: MeasuringArguments, model: nn.Module, accelerator: Accelerator) -> None:
    """Checks that gradients of a single loss can be computed.

    Raises:
        ValueError: if they are asked for under FSDP or DeepSpeed, or with reentrant gradient checkpointing.
    """
    if not args.log_gradient_norms:
        return
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"log_gradient_norms={args.log_gradient_norms} does not work under {accelerator.distributed_type.value}, "
            f"which computes gradients of the whole loss only. Measure them in a short training with DDP or on one "
            f"device."
        )
    if (reentrant := reentrant_checkpointing(args, model)) is not None:
        raise ValueError(
            f"log_gradient_norms={args.log_gradient_norms} does not work with {reentrant}: leave use_reentrant out."
        )


def suggest_weights(log_history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Weights with which every loss has the same gradient norm, from a training with `log_gradient_norms`.

    `alpha_i = K * (1 / n_i) / (1 / n_1 + ... + 1 / n_K)` for K losses, where `n_i` is the mean of the logged
    `grad_norm_i`, the norm of the unweighted loss. Then `alpha_i * n_i` is the same for all losses. The weights add up
    to the number of losses.

    Equal gradients are a starting point, not an optimum: a loss that matters less should have less.

    Reference: Chen et al., 2018, GradNorm, https://arxiv.org/abs/1711.02257, which also sums the weights to the number
    of losses, but adapts them in every step

    Args:
        log_history: `trainer.state.log_history`, or a part of it.

    Returns:
        The weights by argument: `{"alpha_kl": 0.5, ...}`. The weight of a loss of your own, `losses={"mine": ...}`, is
        `alpha_mine`.

    Raises:
        ValueError: if no gradient norm is logged, or if one is 0 or not finite.

    Example:
        >>> suggest_weights([{"grad_norm_kl": 1.0, "grad_norm_cos": 3.0}])
        {'alpha_kl': 1.5, 'alpha_cos': 0.5}
    """
    found: dict[str, list[float]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name.startswith(PREFIX):
                found.setdefault(name.removeprefix(PREFIX), []).append(value)
    if not found:
        raise ValueError(
            f"The {len(log_history)} entries of the log history have no gradient norms: train with "
            f"log_gradient_norms=100, for instance."
        )
    means = {name: sum(values) / len(values) for name, values in found.items()}
    for name, mean in means.items():
        if not 0 < mean < float("inf"):
            raise ValueError(f"The gradient norm of loss_{name} is {mean}, so no weight can balance it: leave it out.")
    total = sum(1 / mean for mean in means.values())
    return {f"alpha_{name}": len(means) / mean / total for name, mean in means.items()}
