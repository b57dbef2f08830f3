"""Stops the training if a loss or a weight is not finite."""

from collections.abc import Collection

import torch
from transformers import Trainer, TrainerCallback

from hf_distill.training.checkpoints.folders import last_whole_checkpoint

NEVER = 2**62
"""Sentinel: no non-finite loss yet."""


class FiniteGuard(TrainerCallback):
    """Records the first step in which each loss was not finite.

    The record stays on the device and is read only when the trainer logs or saves, so no step waits for it.

    Args:
        trainer: the `DistillationTrainer`.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.first_bad_step: torch.Tensor | None = None

    def reset(self) -> None:
        """Clears the record."""
        self.first_bad_step = None

    def record(self, losses: torch.Tensor) -> None:
        """Records the share of one micro-batch in the losses of its optimizer step, `[losses]`."""
        step = torch.where(losses.isfinite(), NEVER, self.trainer.state.global_step + 1)
        self.first_bad_step = step if self.first_bad_step is None else torch.minimum(self.first_bad_step, step)

    def on_train_begin(self, args, state, control, **kwargs):
        self.reset()

    def check_losses(self, names: Collection[str]) -> None:
        """Checks the losses of all steps since the start of the training, on all processes.

        Args:
            names: names of the losses.

        Raises:
            FloatingPointError: if a loss was not finite.
        """
        device = self.trainer.args.device
        bad = self.first_bad_step
        bad = torch.full((len(names),), NEVER, device=device) if bad is None else bad
        steps = self.trainer.accelerator.gather(bad.unsqueeze(0)).amin(0).tolist()
        first = min(steps)
        if first != NEVER:
            self.reset()
            bad_names = [f"loss_{name}" for name, step in zip(names, steps, strict=True) if step == first]
            raise FloatingPointError(
                f"{' and '.join(bad_names)} not finite in step {first}: the training stops without writing a "
                f"checkpoint. {self._way_out}"
            )

    def check_weights(self) -> None:
        """Checks the trained weights. Each process checks its own shards.

        Raises:
            FloatingPointError: if a trained weight is not finite.
        """
        trainer = self.trainer
        weights = [getattr(p, "to_local", lambda p=p: p)() for p in trainer.model.parameters() if p.requires_grad]
        finite = [weight.isfinite().all() for weight in weights if weight.numel()]
        if finite and not trainer.accelerator.gather(torch.stack(finite).all().unsqueeze(0)).all():
            raise FloatingPointError(
                f"The student's weights are not finite after step {trainer.state.global_step}, but the losses were: a "
                f"gradient overflowed. The training stops without writing a checkpoint. {self._way_out}"
            )

    @property
    def _way_out(self) -> str:
        checkpoint = last_whole_checkpoint(self.trainer.args.output_dir)
        resume = "There is no earlier checkpoint" if checkpoint is None else f"The last checkpoint is {checkpoint}"
        return f"{resume}. Lower the learning rate, clip gradients, or train with bf16 instead of fp16."
