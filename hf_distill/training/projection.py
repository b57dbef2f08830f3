"""A learned map from the student's hidden states to the teacher's width. It exists in training only."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

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
    """Does for the projection what `Trainer` and the engine do for the model: averages gradients, and clears them."""

    def __init__(self, projection: HiddenStateProjection, accelerator: Accelerator):
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"project_hidden_states does not work under {accelerator.distributed_type.value}, whose optimizer "
                f"knows of the student's parameters only: use DDP, or a student of the teacher's width."
            )
        self.projection, self.accelerator = projection, accelerator

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        weight = self.projection.weight
        weight.grad = self.accelerator.reduce(weight.grad, reduction="mean")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.projection.zero_grad()
