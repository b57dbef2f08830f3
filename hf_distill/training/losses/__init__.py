"""The losses: one class each, which returns a sum over its own items; the trainer makes it a mean.

To add one: a class beside these, a row in `LOSSES`, an `alpha_...` field in the arguments, a row in the test.
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
"""How each is made from the arguments, by its name in `alpha_<name>` and, in the log, `loss_<name>`."""
