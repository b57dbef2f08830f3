"""The losses: one class each, which returns a sum over its own items; the trainer makes it a mean.

To add one: a class beside these, a row in `LOSSES`, an `alpha_...` field in the arguments, a row in the test.
"""

from hf_distill.training.losses.hidden_states import CosineLoss
from hf_distill.training.losses.logits import (
    BernoulliKLDivergenceLoss,
    KLDivergenceLoss,
    SquaredErrorLoss,
    TopKKLDivergenceLoss,
)
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
    "TopKKLDivergenceLoss",
]

DIVERGENCES = {
    "categorical": lambda args: KLDivergenceLoss(args.temperature),
    "binary": lambda args: BernoulliKLDivergenceLoss(args.temperature),
    "real": lambda args: SquaredErrorLoss(),
    "top k": lambda args: TopKKLDivergenceLoss(args.temperature),
}
TASK_LOSSES = {
    "categorical": lambda args: CrossEntropyLoss(args.label_smoothing_factor),
    "binary": lambda args: BinaryCrossEntropyLoss(),
    "real": lambda args: MeanSquaredErrorLoss(),
}

LOSSES = {
    "kl": lambda args, head, top_k: DIVERGENCES["top k" if top_k else head.distribution](args),
    "task": lambda args, head, top_k: TASK_LOSSES[head.distribution](args),
    "cos": lambda args, head, top_k: CosineLoss(),
}
"""How each is made from the arguments, the head, and how many tokens of a vocabulary are known of the teacher (None for
all), by its name in `alpha_<name>` and, in the log, `loss_<name>`."""
