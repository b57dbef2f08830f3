"""The progress of the whole job: in percent, with the time left."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from hf_distill import Progress

Advance = Callable[[float], None]
"""Called with the share of a step that is done, from 0 to 1."""


class Job:
    """Shows how much of a job is done.

    Args:
        steps: by name, how long each step takes compared with the others.
    """

    def __init__(self, steps: Mapping[str, float]):
        self.steps, self.done = dict(steps), 0.0
        self.progress = Progress("Quickstart", total=100, unit="%")

    def skip(self, *names: str) -> None:
        """Leaves out steps whose result is kept from an earlier run."""
        for name in names:
            del self.steps[name]

    @contextmanager
    def step(self, name: str, headline: str | None = None) -> Iterator[Advance]:
        """Runs one step. Gives a function to call with the share of the step that is done."""
        if headline:
            self.progress.write(headline)

        def advance(share: float) -> None:
            percent = int(100 * (self.done + share * self.steps[name]) / sum(self.steps.values()))
            if percent:  # before that, the time left is unknown
                self.progress.update(percent - self.progress.done)

        advance(0)
        yield advance
        advance(1)
        self.done += self.steps[name]


class _StepsMade(TrainerCallback):
    def __init__(self, advance: Advance):
        self.advance = advance

    def on_step_end(self, args, state, control, **kwargs):
        self.advance(state.global_step / state.max_steps)


def show_steps(trainer: Trainer, advance: Advance) -> None:
    """Shows the steps of a training in place of what Trainer prints."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_StepsMade(advance))
