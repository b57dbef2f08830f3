"""What the losses amount to: over the optimizer steps since the last log, and over an evaluation."""

import torch
from transformers import Trainer, TrainerCallback

NEVER = 2**62
"""Sentinel: no non-finite loss yet."""


class StepLosses(TrainerCallback):
    """The mean of each loss over the optimizer steps since the last log.

    The sums stay on the device until they are logged, so no micro-batch waits for them. If `compute_loss` runs several
    times on one micro-batch, the mean of its runs counts. A step that is left before its last micro-batch is undone: it
    is not logged, and its gradient does not go into the next step.

    Args:
        trainer: the `DistillationTrainer`.
        num_losses: how many losses it has.
    """

    def __init__(self, trainer: Trainer, num_losses: int):
        self.trainer = trainer
        self.reset(num_losses)

    def reset(self, num_losses: int) -> None:
        """Forgets everything."""
        device = self.trainer.args.device
        self.sums = torch.zeros(num_losses, device=device)
        self.steps, self.micro_batches = 0, 0
        self.first_bad_step = torch.full((num_losses,), NEVER, device=device)
        self._runs: list[torch.Tensor] = []
        self._before_step: tuple[torch.Tensor, int, torch.Tensor] | None = None
        self._first_step_of_pass = 0

    def record(self, losses: torch.Tensor) -> None:
        """Adds `[losses]`, the share that one micro-batch has in the losses of its optimizer step."""
        self._runs.append(losses)
        step = torch.where(losses.isfinite(), NEVER, self.trainer.state.global_step + 1)
        self.first_bad_step = torch.minimum(self.first_bad_step, step)

    def take(self) -> torch.Tensor | None:
        """`[losses]`: their means since the last call, over all processes; None if nothing was recorded."""
        if not self.steps or not self.micro_batches:
            return None
        means = self.trainer.accelerator.reduce(self.sums, reduction="sum") / self.steps
        self.sums = torch.zeros_like(self.sums)
        self.steps, self.micro_batches = 0, 0
        return means

    def on_train_begin(self, args, state, control, **kwargs):
        # auto_find_batch_size begins anew after an attempt that ran out of memory.
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
                f"A pass over the training data has {len(too_few)} batches, too few for one step with "
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}: lower it, or give more data."
            )
        if self._before_step is None:
            return
        self.sums, self.micro_batches, loss_before_step = self._before_step
        self._before_step, self._runs = None, []
        self.trainer._tr_loss.copy_(loss_before_step)
        self.trainer.model_wrapped.zero_grad()
        if self.trainer.projection is not None:
            self.trainer.projection.zero_grad()

    def _end_micro_batch(self) -> None:
        if self._runs:
            self.sums = self.sums + torch.stack(self._runs).mean(0)
            self.micro_batches += 1
            self._runs = []


class EvaluationLosses:
    """The mean of each loss over all its items in an evaluation, however they fall into batches.

    Args:
        weights: `[losses]`, what each is multiplied by in the whole loss.
    """

    def __init__(self, weights: torch.Tensor):
        self.weights = weights
        self._sums_and_items = torch.zeros(2, len(weights), device=weights.device)
        self._rest_and_examples = torch.zeros(2, device=weights.device)
        self._runs: list[torch.Tensor] = []
        self.has_parts, self.has_total, self._is_partial = False, False, False

    def record(self, sums: torch.Tensor, items: torch.Tensor, loss: torch.Tensor) -> None:
        """Adds what `compute_loss` computed of a batch.

        Args:
            sums: `[losses]`, each summed over its items in the batch.
            items: `[losses]`, how many items each has.
            loss: their weighted sum, as it was returned.
        """
        self._sums_and_items += torch.stack([sums, items])
        self._runs.append(loss.detach())
        self.has_parts = True

    def end_batch(self, loss: torch.Tensor, num_examples: int) -> None:
        """Adds what an override of `compute_loss` made of the recorded loss: its own share is averaged over examples.

        Args:
            loss: what the override returned.
            num_examples: how many examples the batch has.
        """
        if self._runs:
            rest = (loss.detach() - torch.stack(self._runs).mean()) * num_examples
            self._rest_and_examples += torch.stack([rest, rest.new_tensor(float(num_examples))])
            self.has_total = not self._is_partial
        else:
            self._is_partial, self.has_total = True, False
        self._runs = []

    def means(self, reduce) -> tuple[torch.Tensor, list[float]]:
        """The whole loss, and `[losses]`.

        Args:
            reduce: sums a tensor over all processes.
        """
        sums, items = reduce(self._sums_and_items)
        rest, examples = reduce(self._rest_and_examples)
        losses = means(sums, items)
        return (self.weights @ losses + rest / examples.clamp(min=1)).item(), losses.tolist()


def means(sums: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """`sums / items`, where a loss without any item is 0 rather than NaN."""
    return sums / items.clamp(min=1)
