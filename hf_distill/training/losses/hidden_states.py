"""The losses between hidden states of student and teacher: the last ones, or those of mapped layers."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.citations import JIAO_2020, SANH_2019
from hf_distill.training.losses.layer_map import LayerPair
from hf_distill.training.losses.precision import at_least_fp32
from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.scoring.widths import hidden_width


class Projection(nn.Linear):
    """A linear map from `[batch, length, student width]` to `[batch, length, teacher width]`, without a bias.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351 (`W_h` in the paper)

    Args:
        student_width: width of the student's hidden states.
        teacher_width: width of the teacher's hidden states.
        seed: random seed of the initial weights.

    Example:
        >>> Projection(16, 32, seed=0)(torch.randn(2, 7, 16)).shape
        torch.Size([2, 7, 32])
    """

    def __init__(self, student_width: int, teacher_width: int, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(student_width, teacher_width, bias=False)


class CosineLoss(Loss):
    """One minus the cosine between the last hidden states of student and teacher: `alpha_cos`.

    `forward` reads hidden states `[batch, length, width]` and `state_weights` `[batch, length]`, and returns the
    weighted sum in fp32. Padding has no effect, even if its hidden states are not finite.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108 (`L_cos` in the paper)

    Args:
        projection: a trained map from the student's width to the teacher's; None if the widths are equal.

    Raises:
        ValueError: in `forward`, if the states of student and teacher differ in width or number.

    Example:
        >>> hidden = torch.randn(2, 7, 16)
        >>> student, teacher = Signals(last_hidden_state=hidden), Signals(last_hidden_state=-hidden)
        >>> CosineLoss()(student, teacher, ScoredItems(state_weights=torch.ones(2, 7)))
        tensor(28.)
    """

    needs = Needs(last_hidden_state=True)
    description = "one minus the cosine between the last hidden states of student and teacher"
    citation = SANH_2019
    options = ("project_hidden_states",)

    def __init__(self, projection: Projection | None = None):
        super().__init__()
        self.projection = projection

    @classmethod
    def from_setup(cls, setup: Setup) -> "CosineLoss":
        if not setup.args.project_hidden_states:
            return cls()
        student_width, teacher_width = setup.student.hidden_width, setup.teacher.hidden_width
        if student_width is None or teacher_width is None:
            raise ValueError(
                "project_hidden_states=True needs hidden_size or hidden_sizes in the configs of student and teacher."
            )
        return cls(Projection(student_width, teacher_width, seed=setup.args.seed))

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        widths = [student.hidden_width, teacher.hidden_width]
        if self.projection is None and None not in widths and widths[0] != widths[1]:
            raise ValueError(
                f"The cosine loss needs hidden states of equal width, but the student's are {widths[0]} wide and the "
                f"teacher's {widths[1]}: set project_hidden_states=True, set alpha_cos=0, or cut the student with "
                f"make_student(teacher)."
            )

    def state(self) -> dict[str, object]:
        return {"project_hidden_states": self.projection is not None}

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        student_hidden, teacher_hidden = (
            _projected(self.projection, student.last_hidden_state),
            teacher.last_hidden_state,
        )
        _check_shapes("The cosine loss", "alpha_cos", student_hidden, teacher_hidden)
        return sum_over_states(cosine_distance, student_hidden, teacher_hidden, scored.state_weights)


def cosine_distance(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of each pair of states, `[batch, length]`.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108

    Example:
        >>> cosine_distance(torch.ones(1, 1, 4), -torch.ones(1, 1, 4))
        tensor([[2.]])
    """
    return 1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)


def mean_squared_error(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """The squared difference of each pair of states as a mean over the width, `[batch, length]`.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351 (`L_hidn` in the paper)

    Example:
        >>> mean_squared_error(torch.ones(1, 1, 4), -torch.ones(1, 1, 4))
        tensor([[4.]])
    """
    return (student_hidden - teacher_hidden).square().mean(-1)


def normalized_squared_error(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """The squared distance of each pair of states after scaling both to length 1, `[batch, length]`.

    It equals twice the cosine distance.

    Reference: Sun et al., 2019, Patient Knowledge Distillation (PKD), https://arxiv.org/abs/1908.09355, which compares
    the states of `[CLS]` alone

    Example:
        >>> normalized_squared_error(torch.ones(1, 1, 4), -torch.ones(1, 1, 4))
        tensor([[4.]])
    """
    return (F.normalize(student_hidden, dim=-1) - F.normalize(teacher_hidden, dim=-1)).square().sum(-1)


HIDDEN_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": mean_squared_error,
    "cosine": cosine_distance,
    "normalized_mse": normalized_squared_error,
}
"""Distances between hidden states by the value of `hidden_loss`."""


class HiddenLoss(Loss):
    """The distance between the hidden states of mapped layers: `alpha_hidden`.

    The mean over the attended positions of all mapped layers. `forward` reads the outputs of one pair of layers,
    `[batch, length, width]`, and returns the sum over the attended positions in fp32.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351, which adds up the layers where this is
    their mean; Sun et al., 2019, Patient Knowledge Distillation, https://arxiv.org/abs/1908.09355

    Args:
        distance: a function from `HIDDEN_LOSSES`.
        layers: the pairs of layers to compare.
        projections: for each pair, a trained map from the student's width to the teacher's; None if the widths are
            equal.

    Example:
        >>> student = Signals(hidden_states=torch.ones(2, 7, 16))
        >>> teacher = Signals(hidden_states=torch.zeros(2, 7, 16))
        >>> HiddenLoss(mean_squared_error)(student, teacher, ScoredItems(state_weights=torch.ones(2, 7)))
        tensor(14.)
    """

    needs = Needs(hidden_states=True)
    description = "the distance between the hidden states of mapped layers"
    citation = JIAO_2020
    options = ("hidden_loss", "hidden_embeddings", "layer_map", "project_hidden_states")

    def __init__(
        self,
        distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        layers: Sequence[LayerPair] = (),
        projections: Sequence[Projection | None] = (None,),
    ):
        super().__init__()
        self.distance, self.layers = distance, tuple(layers)
        self.projections = nn.ModuleDict({str(i): module for i, module in enumerate(projections) if module is not None})

    @classmethod
    def from_setup(cls, setup: Setup) -> "HiddenLoss":
        args = setup.args
        layers = setup.map_layers(args.hidden_embeddings)
        projections = []
        for index, pair in enumerate(layers):
            student_width, teacher_width = (hidden_width(model.config_of(pair.stack)) for model in setup.layers)
            if student_width is None or teacher_width is None:
                raise ValueError(
                    f"alpha_hidden needs hidden_size in the configs of student and teacher, for their stack "
                    f"{pair.stack!r}."
                )
            is_projected = args.project_hidden_states or student_width != teacher_width
            seed = args.seed + 1 + index
            projections.append(Projection(student_width, teacher_width, seed) if is_projected else None)
        return cls(HIDDEN_LOSSES[args.hidden_loss], layers, projections)

    def state(self) -> dict[str, object]:
        name = next((name for name, distance in HIDDEN_LOSSES.items() if distance is self.distance), "custom")
        return {"loss": name, "layers": state_of(self.layers), "projections": len(self.projections)}

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        projection = dict(self.projections.items()).get(str(scored.pair))
        student_hidden, teacher_hidden = _projected(projection, student.hidden_states), teacher.hidden_states
        _check_shapes("The loss of hidden states", "alpha_hidden", student_hidden, teacher_hidden)
        return sum_over_states(self.distance, student_hidden, teacher_hidden, scored.state_weights)


def sum_over_states(
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    state_weights: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of a distance over the attended positions, in fp32. Padding has no effect, even if not finite.

    Args:
        distance: takes states of student and teacher, and returns their distances `[batch, length]`.
        student_hidden: `[batch, length, width]`.
        teacher_hidden: `[batch, length, width]`.
        state_weights: `[batch, length]`, 0 for padding.

    Returns:
        The sum, an fp32 tensor of shape `[]`.
    """
    # Filling padding with the same constant on both sides makes its distance constant and its gradient 0. Unlike
    # indexing with the mask, it does not wait for the device.
    padding = state_weights.eq(0)
    student_hidden = at_least_fp32(student_hidden).masked_fill(padding.unsqueeze(-1), 1.0)
    teacher_hidden = at_least_fp32(teacher_hidden).masked_fill(padding.unsqueeze(-1), 1.0)
    return (state_weights * distance(student_hidden, teacher_hidden)).masked_fill(padding, 0.0).sum()


def state_of(layers: Sequence[LayerPair]) -> list[list[object]]:
    """The pairs of layers as JSON values, for a checkpoint."""
    return [[pair.stack, pair.student, pair.teacher] for pair in layers]


def _projected(projection: nn.Module | None, hidden: torch.Tensor) -> torch.Tensor:
    return hidden if projection is None else projection(hidden.to(next(projection.parameters()).dtype))


def _check_shapes(what: str, weight: str, student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> None:
    if student_hidden.shape != teacher_hidden.shape:
        raise ValueError(
            f"{what} needs hidden states of equal shape, but the student's are {list(student_hidden.shape)} and the "
            f"teacher's {list(teacher_hidden.shape)}: set {weight}=0."
        )
