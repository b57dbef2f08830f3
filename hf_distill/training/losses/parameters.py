"""Parameters of losses: trained with the student, saved in checkpoints, and never saved with the student."""

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_distill.training.engines import loss_scale
from hf_distill.training.losses.base import Loss
from hf_distill.training.losses.own_optimizer import needs_own_optimizer

LOSS_PARAMETERS_NAME = "loss_parameters.safetensors"


class LossParameters:
    """The parameters and buffers of losses.

    Their gradients are averaged over the processes here, because the engine only knows the student's parameters.

    Args:
        losses: losses by name.

    Attributes:
        trained: the parameters that require gradients.
        owners: the names of the losses that have such parameters.
    """

    def __init__(self, losses: Mapping[str, Loss]):
        self.losses = losses
        self.owners = [name for name, loss in losses.items() if any(p.requires_grad for p in loss.parameters())]
        self.trained = [p for name in self.owners for p in losses[name].parameters() if p.requires_grad]
        self._are_averaged = False

    def begin_alike(self, accelerator: Accelerator) -> None:
        """Copies the values of the first process to all others."""
        if accelerator.num_processes > 1:
            for tensor in self._tensors().values():
                tensor.data.copy_(broadcast(tensor.detach(), from_process=0))

    def beside(self, model: nn.Module) -> nn.Module:
        """The model together with the losses that have parameters: everything that the optimizer updates."""
        return nn.ModuleList([model, *(self.losses[name] for name in self.owners)]) if self.owners else model

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds the parameters to the optimizer, with the options of the student's first parameter group."""
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if new := [parameter for parameter in self.trained if id(parameter) not in known]:
            options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
            optimizer.add_param_group({**options, "params": new})

    def average_gradients(self, accelerator: Accelerator) -> None:
        """Averages the gradients over all processes, once per optimizer step."""
        if not self._are_averaged:
            for parameter in self.trained:
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
        self._are_averaged = True

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for parameter in self.trained:
            parameter.grad = None
        self._are_averaged = False

    def save(self, checkpoint: str) -> None:
        """Writes them into the checkpoint; writes no file if there are none."""
        if tensors := self._tensors():
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                os.path.join(checkpoint, LOSS_PARAMETERS_NAME),
            )

    def check(self, checkpoint: str) -> None:
        """Checks that a checkpoint has exactly the parameters of these losses.

        Raises:
            ValueError: if parameters are missing or unknown.
        """
        needed, there = self._tensors().keys(), _read(checkpoint).keys()
        if missing := sorted(needed - there):
            raise ValueError(
                f"{checkpoint} lacks {', '.join(missing)}, which the losses of this training need: use the losses that "
                f"the checkpoint was trained with, or train without resume_from_checkpoint."
            )
        if unknown := sorted(there - needed):
            raise ValueError(
                f"{checkpoint} has {', '.join(unknown)}, which no loss of this training has: use the losses that the "
                f"checkpoint was trained with, or train without resume_from_checkpoint."
            )

    def load(self, checkpoint: str) -> None:
        """Loads the values that `save` wrote."""
        tensors = self._tensors()
        for name, tensor in _read(checkpoint).items():
            tensors[name].data.copy_(tensor)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": tensor for name, loss in self.losses.items() for key, tensor in loss.state_dict().items()
        }


def _read(checkpoint: str) -> dict[str, torch.Tensor]:
    path = os.path.join(checkpoint, LOSS_PARAMETERS_NAME)
    return load_file(path) if os.path.isfile(path) else {}


class StepWithStudent(TrainerCallback):
    """Averages and clears the gradients of the losses' parameters, as `Trainer` and the engine do for the model's.

    Under FSDP2 and DeepSpeed it also updates the parameters.

    Args:
        trainer: the `DistillationTrainer`. The callback keeps it rather than its losses, because `model_init` makes new
            losses for each training.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.loss_parameters.zero_grad()

    def on_step_begin(self, args, state, control, **kwargs):
        if (own := self.trainer.loss_optimizer) is not None:
            own.begin_step(self.trainer._get_learning_rate(), float(loss_scale(self.trainer.accelerator)))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.loss_parameters.average_gradients(self.trainer.accelerator)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if (own := self.trainer.loss_optimizer) is not None:
            own.step()
        self.trainer.loss_parameters.zero_grad()


def check_optimizer(parameters: LossParameters, optimizer: object, accelerator: Accelerator) -> None:
    """Checks that the parameters can be trained, if the user passed an optimizer.

    Raises:
        ValueError: if the engine is FSDP2 or DeepSpeed, where the parameters have an optimizer of their own.
    """
    if parameters.owners and optimizer is not None and needs_own_optimizer(accelerator):
        raise ValueError(
            f"{_said(parameters)}, which does not work with optimizers=(optimizer, None) under "
            f"{accelerator.distributed_type.value}: choose the optimizer with optim."
        )


def check_scheduler(parameters: LossParameters, lr_scheduler: object) -> None:
    """Checks that the parameters can be added to the optimizer.

    Raises:
        ValueError: if a scheduler was passed, which would not schedule them.
    """
    if parameters.owners and lr_scheduler is not None:
        raise ValueError(
            f"{_said(parameters)}, which does not work with optimizers=(optimizer, scheduler): the scheduler would not "
            f"apply to them. Pass optimizers=(optimizer, None), and choose the schedule with lr_scheduler_type or by "
            f"overriding create_scheduler."
        )


def _said(parameters: LossParameters) -> str:
    names = " and ".join(f"loss_{name}" for name in parameters.owners)
    return f"{names} has trainable parameters (project_hidden_states=True adds some)"
