"""The losses: one class each, which returns a sum over its own items; the trainer makes it a mean.

To add one: a class beside these, a row in `LOSSES`, an `alpha_...` field in the arguments, a row in the test.
"""

from hf_distill.training.losses.hidden_states import CosineLoss
from hf_distill.training.losses.logits import BernoulliKLDivergenceLoss, KLDivergenceLoss, SquaredErrorLoss
from hf_distill.training.losses.task import BinaryCrossEntropyLoss, CrossEntropyLoss, MeanSquaredErrorLoss

__all__ = [
    "LOSSES",
    "BernoulliKLDivergenceLoss",
    "BinaryCrossEntropyLoss",
    "CosineLoss",
    "CrossEntropyLoss",
    "KLDivergenceLoss",
    "MeanSquaredErrorLoss",
    "SquaredErrorLoss",
]

DIVERGENCES = {
    "categorical": lambda args: KLDivergenceLoss(args.temperature),
    "binary": lambda args: BernoulliKLDivergenceLoss(args.temperature),
    "real": lambda args: SquaredErrorLoss(),
}
TASK_LOSSES = {
    "categorical": lambda args: CrossEntropyLoss(args.label_smoothing_factor),
    "binary": lambda args: BinaryCrossEntropyLoss(),
    "real": lambda args: MeanSquaredErrorLoss(),
}

LOSSES = {
    "kl": lambda args, head: DIVERGENCES[head.distribution](args),
    "task": lambda args, head: TASK_LOSSES[head.distribution](args),
    "cos": lambda args, head: CosineLoss(),
}
"""How each is made from the arguments and the head, by its name in `alpha_<name>` and, in the log, `loss_<name>`."""
