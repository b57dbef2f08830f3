"""How often a short training logs."""

from transformers import TrainerCallback, TrainingArguments

NUM_LOGS = 20
"""Of a training that is too short for the default of `logging_steps`."""


class LogsOfShortTraining(TrainerCallback):
    """Logs a short training about 20 times, where `logging_steps` is left at its default."""

    def on_step_end(self, args, state, control, **kwargs):
        is_default = args.logging_strategy == "steps" and args.logging_steps == TrainingArguments.logging_steps
        every = max(1, state.max_steps // NUM_LOGS)
        if is_default and every < args.logging_steps and state.global_step % every == 0:
            control.should_log = True
