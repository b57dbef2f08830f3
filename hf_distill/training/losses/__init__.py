"""The losses, one class each. A loss returns the sum over its items; the trainer turns sums into means.

To add a loss: write a class in a file of this folder, and add a row to `LOSSES`, an `alpha_...` field to the arguments
and a row to the parametrised test.
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
"""Loss classes by name: `alpha_<name>` is the weight, `loss_<name>` the log entry. `from_setup` creates an instance."""
