"""Which losses a training uses: those of the `alpha_...` arguments, and the user's own."""

import math
from collections.abc import Mapping

from hf_distill.training.losses import LOSSES
from hf_distill.training.losses.base import Loss, Setup

GivenLosses = Mapping[str, tuple[Loss, float]]
"""The `losses` argument of `DistillationTrainer`: pairs of a loss and its weight, by name."""


def check_given_losses(given: GivenLosses, weights: Mapping[str, float]) -> None:
    """Checks the `losses` argument of `DistillationTrainer`.

    Args:
        given: the value of `losses`.
        weights: the weights of the `alpha_...` arguments, by name.

    Raises:
        TypeError: if `given` is not a mapping from names to pairs of a `Loss` and a number.
        ValueError: if a name is invalid or taken, if a weight is below 0, or if a loss does not read exactly one of
            logits and hidden states.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f'losses should be a dict such as {{"name": (loss, weight)}}, but is {type(given).__name__}.')
    for name, pair in given.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"losses[{name!r}]: the name should be a valid identifier, such as 'reverse_kl', which is logged as "
                f"loss_reverse_kl."
            )
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"losses[{name!r}] should be a pair (loss, weight), but is {pair!r}.")
        loss, weight = pair
        if not isinstance(loss, Loss):
            raise TypeError(f"losses[{name!r}] has a {type(loss).__name__}, not a loss: subclass hf_distill.Loss.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise TypeError(f"losses[{name!r}] has weight {weight!r}, which should be a finite number.")
        if weight < 0:
            raise ValueError(f"losses[{name!r}] has weight {weight}, which should be 0 (off) or above.")
        if loss.needs.logits == loss.needs.last_hidden_state:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {loss.needs}: set exactly one of logits and "
                f"last_hidden_state to True."
            )
        if loss.needs.labels and not loss.needs.logits:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {loss.needs}: only a loss that reads logits can "
                f"read labels."
            )
        if weights.get(name, 0) > 0:
            raise ValueError(
                f"losses[{name!r}] has the name of a built-in loss, which is on with alpha_{name}={weights[name]}: "
                f"choose another name, or set alpha_{name}=0 to replace the built-in loss."
            )


def make_losses(
    weights: Mapping[str, float], given: GivenLosses, setup: Setup, previous: Mapping[str, Loss]
) -> dict[str, Loss]:
    """Creates the losses whose weight is not 0, by name.

    Args:
        weights: the weights of all losses, by name.
        given: the `losses` argument of `DistillationTrainer`.
        setup: what the built-in losses are created from.
        previous: losses from an earlier call, whose parameters are kept.

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
    """The losses that compare the student with a teacher, as written in the user's code."""
    losses = {name: given[name][0] if name in given else LOSSES[name] for name, weight in weights.items() if weight > 0}
    return [name_in_code(name, loss, weights[name]) for name, loss in losses.items() if loss.reads_teacher]


def name_in_code(name: str, loss: Loss | type[Loss], weight: float) -> str:
    """The loss as written in the user's code, such as `alpha_kl=5.0` or `losses['mine']`."""
    return f"alpha_{name}={weight}" if _is_of_arguments(name, loss) else f"losses[{name!r}]"


def how_to_leave_out(name: str, loss: Loss) -> str:
    """The advice that turns a loss off, for an error message."""
    return f"set alpha_{name}=0" if _is_of_arguments(name, loss) else f"leave out losses[{name!r}]"


def _is_of_arguments(name: str, loss: Loss | type[Loss]) -> bool:
    """Whether the loss is a built-in one, not the user's own of the same name."""
    cls = loss if isinstance(loss, type) else type(loss)
    return issubclass(cls, LOSSES.get(name, ()))
