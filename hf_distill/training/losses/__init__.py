"""The losses: one class each, which returns a sum over its own items; the trainer makes it a mean.

To add one: a class in a file beside these, a row in `LOSSES`, an `alpha_...` field in the arguments, a row in the test.
"""

from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.hidden_states import CosineLoss
from hf_distill.training.losses.logits import DIVERGENCES, DivergenceLoss
from hf_distill.training.losses.task import TASK_LOSSES, TaskLoss

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "TASK_LOSSES",
    "CosineLoss",
    "DivergenceLoss",
    "Loss",
    "Needs",
    "ScoredItems",
    "Setup",
    "Signals",
    "TaskLoss",
]

LOSSES: dict[str, type[Loss]] = {"kl": DivergenceLoss, "task": TaskLoss, "cos": CosineLoss}
"""By its name in `alpha_<name>` and, in the log, `loss_<name>`. `from_setup` makes each of a `Setup`."""
