"""The losses: one class each, which returns a sum over its own items; the trainer makes it a mean.

To add one: a class beside these, a row in `build_losses`, an `alpha_...` field in the arguments, a row in the test.
"""

from hf_distill.training.losses.hidden_states import CosineLoss
from hf_distill.training.losses.logits import KLDivergenceLoss
from hf_distill.training.losses.task import TaskLoss

__all__ = ["LOSSES", "CosineLoss", "KLDivergenceLoss", "TaskLoss"]

LOSSES = {
    "kl": lambda args: KLDivergenceLoss(args.temperature),
    "task": lambda args: TaskLoss(args.label_smoothing_factor),
    "cos": lambda args: CosineLoss(),
}
"""By the name that they have in `alpha_<name>` and in the log, as `loss_<name>`: how each is made from the arguments."""
