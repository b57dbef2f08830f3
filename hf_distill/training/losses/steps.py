"""The mean of each loss over the optimizer steps since the last log, and the division of sums by items."""

import torch
from transformers import Trainer, TrainerCallback


class StepLosses(TrainerCallback):
    """The mean of each loss over the optimizer steps since the last log.

    The sums stay on the device until they are logged, so no micro-batch waits for the device. If `compute_loss` runs
    several times on one micro-batch, the mean of its runs counts. A step that stops before its last micro-batch is
    discarded: it is not logged, and its gradient does not go into the next step.

    Args:
        trainer: the `DistillationTrainer`.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def reset(self, num_losses: int) -> None:
        """Clears all sums, for `num_losses` losses."""
        device = self.trainer.args.device
        self.sums = torch.zeros(num_losses, device=device)
        self.steps, self.micro_batches = 0, 0
        self._runs: list[torch.Tensor] = []
        self._before_step: tuple[torch.Tensor, int, torch.Tensor] | None = None
        self._first_step_of_pass = 0

    def record(self, losses: torch.Tensor) -> None:
        """Adds the share of one micro-batch in the losses of its optimizer step, `[losses]`."""
        self._runs.append(losses)

    def take(self) -> torch.Tensor | None:
        """The means since the last call, over all processes, `[losses]`; None if nothing was recorded."""
        if not self.steps or not self.micro_batches:
            return None
        means = self.trainer.accelerator.reduce(self.sums, reduction="sum") / self.steps
        self.sums = torch.zeros_like(self.sums)
        self.steps, self.micro_batches = 0, 0
        return means

    def on_train_begin(self, args, state, control, **kwargs):
        # auto_find_batch_size starts over after running out of memory.
        self.reset(len(self.sums))
        self.trainer.left_over_batches = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._first_step_of_pass = state.global_step

    def on_step_begin(self, args, state, control, **kwargs):
        self._runs = []
        self._before_step = (self.sums.clone(), self.micro_batches, self.trainer._tr_loss.clone())

    def on_substep_end(self, args, state, control, **kwargs):
        self._end_micro_batch()

    def on_step_end(self, args, state, control, **kwargs):
        self._end_micro_batch()
        self._before_step = None
        self.steps += 1

    def on_epoch_end(self, args, state, control, **kwargs):
        too_few = self.trainer.left_over_batches
        if too_few and control.should_training_stop and state.global_step == self._first_step_of_pass:
            raise ValueError(
                f"One pass over the training data has {len(too_few)} batches, too few for an optimizer step with "
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}: lower it, or provide more data."
            )
        if self._before_step is None:
            return
        self.sums, self.micro_batches, loss_before_step = self._before_step
        self._before_step, self._runs = None, []
        self.trainer._tr_loss.copy_(loss_before_step)
        self.trainer.model_wrapped.zero_grad()
        self.trainer.loss_parameters.zero_grad()

    def _end_micro_batch(self) -> None:
        if self._runs:
            self.sums = self.sums + torch.stack(self._runs).mean(0)
            self.micro_batches += 1
            self._runs = []


def means(sums: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """`sums / items`. A loss without items is 0, not NaN."""
    return sums / items.clamp(min=1)
