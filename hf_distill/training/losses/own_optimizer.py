"""The optimizer of losses' parameters under FSDP2 and DeepSpeed, whose optimizer only knows the student's."""

import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

LOSS_OPTIMIZER_NAME = "loss_optimizer.safetensors"


class OwnOptimizer:
    """An optimizer of the kind that `optim` names, with the student's learning rate at each step.

    Gradients are clipped to `max_grad_norm` by their own norm, without the student's.

    Args:
        parameters: the parameters of the losses. Each process has all of them.
        trainer: the trainer, whose arguments choose the optimizer.

    Raises:
        ValueError: if the optimizer cannot be created for these parameters alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], trainer: Trainer):
        self.parameters, self.max_grad_norm = list(parameters), trainer.args.max_grad_norm
        if trainer.optimizer_cls_and_kwargs is not None:
            optimizer_class, options = trainer.optimizer_cls_and_kwargs
        else:
            optimizer_class, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
        is_known = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
        if not is_known or {"params", "model", "optimizer_dict"} & options.keys():
            raise ValueError(
                f"optim={str(trainer.args.optim.value)!r} cannot train the parameters of losses under this engine: use "
                f"optim='adamw_torch'."
            )
        group = {"params": self.parameters, "weight_decay": trainer.args.weight_decay}
        self.optimizer = optimizer_class([group], **options)
        self.learning_rate, self.loss_scale = 0.0, 1.0

    def begin_step(self, learning_rate: float, loss_scale: float) -> None:
        """Keeps the student's learning rate and the scale of the gradients for this step."""
        self.learning_rate, self.loss_scale = learning_rate, loss_scale

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters. A step with gradients that are not finite is left out, as the engine does."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return
        torch._foreach_mul_(gradients, 1 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not norm.isfinite():
            return
        if self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()

    def save(self, checkpoint: str) -> None:
        """Writes the optimizer's state into a checkpoint."""
        states = self.optimizer.state_dict()["state"]
        tensors = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, state in states.items()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        save_file(tensors, os.path.join(checkpoint, LOSS_OPTIMIZER_NAME))

    def load(self, checkpoint: str) -> None:
        """Loads the state that `save` wrote."""
        path = os.path.join(checkpoint, LOSS_OPTIMIZER_NAME)
        if not os.path.isfile(path):
            raise ValueError(
                f"{checkpoint} has no {LOSS_OPTIMIZER_NAME}: it was written by another engine. Resume with the engine "
                f"that the checkpoint was trained with."
            )
        states: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(path).items():
            index, _, name = key.partition(".")
            states.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})


def needs_own_optimizer(accelerator: Accelerator) -> bool:
    """Whether the engine's optimizer cannot take parameters that are not the student's."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
