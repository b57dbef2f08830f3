"""The loss between the student's and the teacher's logits."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.citations import ANSHUMANN_2025, SUN_2024
from hf_distill.training.losses.divergences import DIVERGENCES
from hf_distill.training.losses.divergences.standardization import standardized

PARAMETERS = tuple(dict.fromkeys(name for divergence in DIVERGENCES.values() for name in divergence.parameters))
"""The training arguments that some divergences read."""


class DivergenceLoss(Loss):
    """The divergence between the outputs of teacher and student: `alpha_kl`.

    The items are the scored positions; for a divergence that reads labels, the labelled ones.

    Reference: Hinton et al., 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531, for
    the default; the functions in `losses/divergences` name the papers of the others

    Args:
        divergence: a key of `DIVERGENCES`.
        temperature: divides the logits of both sides.
        distribution: what the logits describe (`Head.distribution`); "top k" or "samples" for stored targets of a
            language model.
        standardize_logits: whether to standardise the logits of each position, see `standardized`.
        **parameters: parameters of the divergence, such as `divergence_beta`.

    Example:
        >>> student, teacher = Signals(logits=torch.tensor([[1.0, 0.0]])), Signals(logits=torch.tensor([[0.0, 1.0]]))
        >>> DivergenceLoss("jsd", temperature=2.0, divergence_beta=0.5)(student, teacher, ScoredItems())
        tensor(0.1212)
    """

    description = DIVERGENCES["forward_kl"].description
    citation = DIVERGENCES["forward_kl"].citation
    needs = Needs(logits=True)
    options = ("temperature", "divergence", *PARAMETERS, "standardize_logits")

    def __init__(
        self,
        divergence: str = "forward_kl",
        temperature: float = 2.0,
        distribution: str = "categorical",
        standardize_logits: bool = False,
        **parameters: float,
    ):
        super().__init__()
        chosen = DIVERGENCES[divergence]
        self.divergence, self.temperature, self.distribution = divergence, temperature, distribution
        self.standardize_logits, self.parameters_of_divergence = standardize_logits, parameters
        self.function = chosen.functions[distribution]
        self.needs = Needs(logits=True, labels=chosen.reads_labels)
        self.description, self.citation = chosen.description, chosen.citation
        if distribution == "samples":
            self.description += ", from sampled tokens of the teacher"
            self.citation += f"\n\n{ANSHUMANN_2025}"
        if standardize_logits:
            self.description += ", with standardised logits"
            self.citation += f"\n\n{SUN_2024}"

    @classmethod
    def check_arguments(cls, args: Any) -> None:
        chosen = DIVERGENCES[args.divergence]
        for name in PARAMETERS:
            if name in chosen.parameters:
                _check_parameter(name, getattr(args, name))
            elif getattr(args, name) != args.__dataclass_fields__[name].default:
                readers = [other for other, divergence in DIVERGENCES.items() if name in divergence.parameters]
                raise ValueError(
                    f"{name}={getattr(args, name)!r} would have no effect with divergence={args.divergence!r}: leave "
                    f"it out, or set divergence={' or '.join(map(repr, readers))}."
                )
        if args.divergence == "dkd" and args.dkd_alpha == args.dkd_beta == 0:
            raise ValueError("dkd_alpha=0 and dkd_beta=0 leave nothing of the loss: set one above 0, or alpha_kl=0.")
        is_read = chosen.reads_temperature or args.reads_temperature_of_groups
        if not is_read and args.temperature != args.__dataclass_fields__["temperature"].default:
            raise ValueError(
                f"temperature={args.temperature} would have no effect with divergence={args.divergence!r}, which "
                f"compares logits: leave it out."
            )

    @classmethod
    def from_setup(cls, setup: Setup) -> "DivergenceLoss":
        args = setup.args
        distribution: str = setup.head.distribution if setup.top_k is None else "top k"
        if setup.num_samples is not None:
            distribution = "samples"
        _check_distribution(setup, distribution)
        return cls(
            args.divergence,
            args.temperature,
            distribution,
            args.standardize_logits,
            **{name: getattr(args, name) for name in DIVERGENCES[args.divergence].parameters},
        )

    def state(self) -> Mapping[str, object]:
        if self.distribution == "real":
            return {}
        state: dict[str, object] = {}
        if DIVERGENCES[self.divergence].reads_temperature:
            state["temperature"] = self.temperature
        if self.divergence != "forward_kl":
            state |= {"divergence": self.divergence, **self.parameters_of_divergence}
        if self.standardize_logits:
            state["standardize_logits"] = True
        return state

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        logits = student.logits, teacher.logits
        if self.standardize_logits:
            logits = standardized(*logits)
        labels = {"labels": scored.labels} if self.needs.labels else {}
        return self.function(*logits, self.temperature, **labels, **self.parameters_of_divergence)


def _check_parameter(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = " (YAML reads 1e-1 as a string: write 1.0e-1)" if isinstance(value, str) else ""
        raise ValueError(f"{name}={value!r} should be a finite number{hint}.")
    if name.startswith("dkd_"):
        if value < 0:
            raise ValueError(f"{name}={value} should be 0 or above.")
    elif not 0 < value < 1:
        limits = {
            "divergence_beta": "divergence='forward_kl' and 'reverse_kl' are the limits at 0 and 1",
            "divergence_skew": "at 0 use divergence='forward_kl' or 'reverse_kl'",
        }
        raise ValueError(f"{name}={value} should be above 0 and below 1; {limits[name]}.")


def _check_distribution(setup: Setup, distribution: str) -> None:
    """Checks that the divergence and the standardisation are defined for the logits of student and teacher."""
    args, model = setup.args, setup.student.model
    chosen = DIVERGENCES[args.divergence]
    defined = ", ".join(repr(name) for name, other in DIVERGENCES.items() if distribution in other.functions)
    if distribution == "samples" and (distribution not in chosen.functions or args.standardize_logits):
        given = "standardize_logits=True" if distribution in chosen.functions else f"divergence={args.divergence!r}"
        raise ValueError(
            f"{given} does not work with targets of add_teacher_targets(..., num_samples={setup.num_samples}), which "
            f"only divergence='forward_kl' can read: leave it out, store the most likely tokens with top_k, or pass "
            f"teacher_model."
        )
    if distribution not in chosen.functions:
        if distribution == "top k":
            raise ValueError(
                f"divergence={args.divergence!r} compares every logit, but the dataset stores only the {setup.top_k} "
                f"most likely tokens of the teacher: pass teacher_model, or use one of {defined}."
            )
        raise ValueError(
            f"divergence={args.divergence!r} is not defined for a {model} with "
            f"problem_type={setup.student.problem_type!r}: use one of {defined}."
        )
    if args.standardize_logits and distribution != "categorical":
        why = (
            f"needs all logits, but the dataset stores only the {setup.top_k} most likely tokens of the teacher: pass "
            f"teacher_model, or leave it out"
            if distribution == "top k"
            else f"is only defined for softmax outputs, not for a {model} with "
            f"problem_type={setup.student.problem_type!r}: leave it out"
        )
        raise ValueError(f"standardize_logits=True {why}.")
    num_classes = None if setup.student.labels is None else len(setup.student.labels)
    if distribution != "categorical" or num_classes is None or num_classes > 2:
        return
    if args.standardize_logits:
        raise ValueError(
            f"standardize_logits=True needs at least 3 classes, but the {model} has {num_classes}: with two, every "
            f"standardised logit is 1 or -1. Leave it out."
        )
    if num_classes < chosen.min_classes:
        others = ", ".join(repr(name) for name, other in DIVERGENCES.items() if other.min_classes <= num_classes)
        raise ValueError(
            f"divergence={args.divergence!r} needs at least {chosen.min_classes} classes, but the {model} has "
            f"{num_classes}: use one of {others}."
        )
