"""Which losses a training has: those of its arguments, and those that a user gives."""

import math
from collections.abc import Mapping

from hf_distill.training.losses import LOSSES
from hf_distill.training.losses.base import Loss, Setup

GivenLosses = Mapping[str, tuple[Loss, float]]
"""By name, a loss and its weight, as `DistillationTrainer` takes them."""


def check_given_losses(given: GivenLosses, weights: Mapping[str, float]) -> None:
    """Checks what a user gives as `losses`.

    Args:
        given: what was given.
        weights: by name, the weights that the arguments have.

    Raises:
        TypeError: if it is no mapping from names to pairs of a `Loss` and a number.
        ValueError: if a name is taken or cannot be one, if a weight is below 0, or if a loss needs nothing.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f'losses should be like {{"name": (loss, weight)}}, but is {type(given).__name__}.')
    for name, pair in given.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"losses[{name!r}]: a name should be a word, such as 'reverse_kl': logged as loss_reverse_kl."
            )
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"losses[{name!r}] should be a pair (loss, weight), but is {pair!r}.")
        loss, weight = pair
        if not isinstance(loss, Loss):
            raise TypeError(f"losses[{name!r}] has a {type(loss).__name__}: subclass hf_distill.Loss.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise TypeError(f"losses[{name!r}] has the weight {weight!r}, which should be a finite number.")
        if weight < 0:
            raise ValueError(f"losses[{name!r}] has the weight {weight}, which should be 0 (off) or above.")
        if loss.needs.logits == loss.needs.last_hidden_state:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {loss.needs}: a loss reads either logits or the "
                f"last hidden state."
            )
        if loss.needs.labels and not loss.needs.logits:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {loss.needs}: labels are those of logits."
            )
        if weights.get(name, 0) > 0:
            raise ValueError(
                f"losses[{name!r}] has the name of a loss of hf_distill, which has the weight {weights[name]}: choose "
                f"another name, or set alpha_{name}=0 to replace it."
            )


def make_losses(
    weights: Mapping[str, float], given: GivenLosses, setup: Setup, previous: Mapping[str, Loss]
) -> dict[str, Loss]:
    """By name, the losses whose weight is not 0.

    Args:
        weights: by name, those of the arguments and of `given`.
        given: as `DistillationTrainer` takes it.
        setup: what the losses of the arguments are made from.
        previous: losses that were made before, whose parameters the new ones go on with.

    Raises:
        ValueError: if student and teacher cannot be compared.
    """
    losses = {}
    for name in (name for name, weight in weights.items() if weight > 0):
        loss = given[name][0] if name in given else LOSSES[name].from_setup(setup)
        if name not in given and name in previous and loss.state_dict().keys() == previous[name].state_dict().keys():
            loss.load_state_dict(previous[name].state_dict())
        loss.check(setup.student, setup.teacher)
        losses[name] = loss
    return losses


def readers_of_teacher(weights: Mapping[str, float], given: GivenLosses) -> list[str]:
    """The losses that compare the student with a teacher, as their user wrote them."""
    losses = {name: given[name][0] if name in given else LOSSES[name] for name, weight in weights.items() if weight > 0}
    return [name_in_code(name, loss, weights[name]) for name, loss in losses.items() if loss.reads_teacher]


def name_in_code(name: str, loss: Loss | type[Loss], weight: float) -> str:
    """A loss as its user wrote it."""
    return f"alpha_{name}={weight}" if _is_of_arguments(name, loss) else f"losses[{name!r}]"


def how_to_leave_out(name: str, loss: Loss) -> str:
    """What to do without a loss."""
    return f"set alpha_{name}=0" if _is_of_arguments(name, loss) else f"leave out losses[{name!r}]"


def _is_of_arguments(name: str, loss: Loss | type[Loss]) -> bool:
    """Whether it is the loss of an `alpha_...`, and not one that was given in its place."""
    cls = loss if isinstance(loss, type) else type(loss)
    return issubclass(cls, LOSSES.get(name, ()))
