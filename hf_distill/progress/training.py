"""The progress of a training, in place of Trainer's bars."""

import re

from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from hf_distill.progress.lines import Progress

NOT_SHOWN = re.compile("^epoch$|^grad_norm$|_flos$|_runtime$|_per_second$")
"""What is in the logs of a trainer, but not in these lines."""


def show_progress(trainer: Trainer) -> None:
    """Shows the progress of a trainer as a bar in a terminal, and elsewhere as a line at most every 10 seconds.

    Each log, such as the loss every `logging_steps`, is one line:

        step 20 of 200, 1:21 left: loss 0.5321, learning_rate 4.5e-05

    Trainer's own bars are replaced. Without them, as in a notebook or with `disable_tqdm=True`, nothing is changed.

    Args:
        trainer: a `DistillationTrainer` or any other `Trainer`, before `train()`.

    Example:
        >>> show_progress(trainer)
        >>> trainer.train()
    """
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(TrainingProgress())


class TrainingProgress(TrainerCallback):
    """`Progress` of training and of evaluation, and the logs as lines."""

    def __init__(self):
        self.training: Progress | None = None
        self.evaluation: Progress | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training = Progress("Training", state.max_steps - state.global_step)
            self.first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if self.training is not None:
            self.training.update(state.global_step - self.first_step - self.training.done)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training is not None:
            self.training.close()
            self.training = None

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.is_world_process_zero and has_length(eval_dataloader):
            if self.evaluation is None:
                self.evaluation = Progress("Evaluating", len(eval_dataloader), "batches", only_if_long=True)
            self.evaluation.update()

    def on_evaluate(self, args, state, control, **kwargs):
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None

    def on_predict(self, args, state, control, **kwargs):
        self.on_evaluate(args, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training is None or "train_runtime" in logs:
            return
        numbers = {name: value for name, value in logs.items() if not NOT_SHOWN.search(name)}
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()
        )
        self.training.write(
            f"step {state.global_step:,} of {state.max_steps:,}, {self.training.time_left()} left: {shown}"
        )
