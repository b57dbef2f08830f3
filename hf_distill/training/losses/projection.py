"""A learned map from the student's hidden states to the teacher's width. It exists in training only."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

PROJECTION_NAME = "hidden_state_projection.safetensors"


class HiddenStateProjection(nn.Linear):
    """Maps hidden states `[batch, length, student width]` to `[batch, length, teacher width]`, without a bias.

    It is no part of the student: a checkpoint has it in a file of its own, from which a training resumes, and a saved
    or pushed student is without it.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351 (there `W_h`)

    Args:
        student_width: of the student's hidden states.
        teacher_width: of the teacher's.
        seed: of the random numbers that it begins with.

    Example:
        >>> HiddenStateProjection(16, 32, seed=0)(torch.randn(2, 7, 16)).shape
        torch.Size([2, 7, 32])
    """

    def __init__(self, student_width: int, teacher_width: int, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(student_width, teacher_width, bias=False)
        self._is_averaged = False

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Has the optimizer step it too, with the options of the first of the student's groups."""
        groups = optimizer.param_groups
        if not any(parameter is self.weight for group in groups for parameter in group["params"]):
            options = {name: value for name, value in groups[0].items() if name != "params"}
            optimizer.add_param_group({**options, "params": [self.weight]})

    def average_gradient(self, accelerator: Accelerator) -> None:
        """Averages the gradient over all processes, once in an optimizer step."""
        if not self._is_averaged and self.weight.grad is not None:
            self.weight.grad = accelerator.reduce(self.weight.grad, reduction="mean")
        self._is_averaged = True

    def zero_grad(self, *args, **kwargs) -> None:
        super().zero_grad(*args, **kwargs)
        self._is_averaged = False

    def save(self, checkpoint: str) -> None:
        """Writes it beside the student."""
        save_file({"weight": self.weight.detach().cpu()}, os.path.join(checkpoint, PROJECTION_NAME))

    def load(self, checkpoint: str) -> None:
        """Reads what `save` wrote.

        Raises:
            ValueError: if it is not there.
        """
        path = os.path.join(checkpoint, PROJECTION_NAME)
        if not os.path.isfile(path):
            raise ValueError(
                f"{checkpoint} was written without project_hidden_states, so there is no projection to go on with: "
                f"train anew, or without it."
            )
        self.load_state_dict(load_file(path))


class StepWithStudent(TrainerCallback):
    """Does for the projection what `Trainer` and the engine do for the model: averages gradients, and clears them.

    Args:
        trainer: the `DistillationTrainer`; `model_init` gives it a new projection for each training.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.projection is not None:
            self.trainer.projection.zero_grad()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.projection is not None:
            self.trainer.projection.average_gradient(self.trainer.accelerator)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.projection is not None:
            self.trainer.projection.zero_grad()


def check_engine_of_projection(accelerator: Accelerator) -> None:
    """Checks that the engine's optimizer can step a parameter that is not the student's.

    Raises:
        ValueError: if not.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"project_hidden_states does not work under {accelerator.distributed_type.value}, whose optimizer knows of "
            f"the student's parameters only: use DDP, or a student of the teacher's width."
        )


def check_optimizers(lr_scheduler: object, args: TrainingArguments) -> None:
    """Checks that the projection can join the optimizer.

    Raises:
        ValueError: if there is a scheduler already, which would not know of it.
    """
    if args.project_hidden_states and lr_scheduler is not None:
        raise ValueError(
            "optimizers=(optimizer, scheduler) does not work with project_hidden_states=True: the projection joins the "
            "optimizer, and this scheduler would not know of it. Pass optimizers=(optimizer, None), and choose the "
            "schedule with lr_scheduler_type or by overriding create_scheduler."
        )


def check_no_projection(checkpoint: str) -> None:
    """Checks that a training without a projection goes on from one without.

    Raises:
        ValueError: if the checkpoint has one.
    """
    if os.path.isfile(os.path.join(checkpoint, PROJECTION_NAME)):
        raise ValueError(
            f"{checkpoint} was written with project_hidden_states=True, and its optimizer steps the projection too: "
            f"set project_hidden_states=True, or train anew."
        )
