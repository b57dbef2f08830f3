"""The divergences that `alpha_kl` can minimise, by the value of `divergence`.

To add a divergence: write a function of log-probabilities or of logits, and add a row to `DIVERGENCES`, its name to
`DivergenceName` and a row to the parametrised test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hf_distill.training.losses.citations import (
    AGARWAL_2023,
    GU_2023,
    HINTON_2015,
    HUANG_2022,
    KIM_2021,
    KO_2024,
    WEN_2023,
    ZHAO_2022,
)
from hf_distill.training.losses.divergences.distributions import over_distributions
from hf_distill.training.losses.divergences.log_probabilities import (
    forward_kl,
    jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    tvd,
)
from hf_distill.training.losses.divergences.logits import bernoulli_kl, dist, dkd, mse, sampled_kl, squared_difference


@dataclass(frozen=True)
class Divergence:
    """A row of `DIVERGENCES`.

    Attributes:
        functions: by distribution (`Head.distribution`, "top k" or "samples" for stored targets), a function of
            `student_logits`, `teacher_logits`, `temperature` and the parameters that returns the sum over the scored
            positions. A distribution that is left out is an error when the trainer is created.
        description: what it is, in half a sentence, for the model card.
        citation: BibTeX for the model card.
        parameters: the training arguments that it reads, which are also keyword arguments of the functions.
        reads_temperature: whether the temperature has an effect.
        reads_labels: whether the functions take `labels` too.
        min_classes: the fewest classes for which it differs from simpler divergences.
    """

    functions: Mapping[str, Callable[..., torch.Tensor]]
    description: str
    citation: str
    parameters: tuple[str, ...] = ()
    reads_temperature: bool = True
    reads_labels: bool = False
    min_classes: int = 2


DIVERGENCES: dict[str, Divergence] = {
    # For multi-label heads the formula is written out, and for numbers there is a single choice.
    "forward_kl": Divergence(
        {
            **over_distributions(forward_kl),
            "binary": bernoulli_kl,
            "real": squared_difference,
            "samples": sampled_kl,
        },
        "the divergence between the softened outputs of teacher and student",
        HINTON_2015,
    ),
    "reverse_kl": Divergence(
        over_distributions(reverse_kl),
        "the KL divergence from the student's softened outputs to the teacher's (reverse KL)",
        GU_2023,
    ),
    "jsd": Divergence(
        over_distributions(jsd),
        "the generalised Jensen-Shannon divergence between the softened outputs of teacher and student",
        AGARWAL_2023,
        parameters=("divergence_beta",),
    ),
    "skew_kl": Divergence(
        over_distributions(skew_kl),
        "the skew KL divergence between the softened outputs of teacher and student",
        KO_2024,
        parameters=("divergence_skew",),
    ),
    "skew_reverse_kl": Divergence(
        over_distributions(skew_reverse_kl),
        "the skew reverse KL divergence between the softened outputs of teacher and student",
        KO_2024,
        parameters=("divergence_skew",),
    ),
    "tvd": Divergence(
        over_distributions(tvd, temperature_power=1),
        "the total variation distance between the softened outputs of teacher and student",
        WEN_2023,
    ),
    "mse": Divergence(
        {"categorical": mse, "binary": mse, "real": squared_difference},
        "the squared difference between the logits of teacher and student",
        KIM_2021,
        reads_temperature=False,
    ),
    "dkd": Divergence(
        {"categorical": dkd},
        "the decoupled KL divergence between the softened outputs of teacher and student (DKD)",
        ZHAO_2022,
        parameters=("dkd_alpha", "dkd_beta"),
        reads_labels=True,
        min_classes=3,
    ),
    "dist": Divergence(
        {"categorical": dist},
        "one minus the correlation of the softened outputs of teacher and student (DIST, inter-class)",
        HUANG_2022,
        min_classes=3,
    ),
}
"""Divergences by the value of `divergence`."""
