"""Which losses a training uses: those of the `alpha_...` arguments, and the user's own."""

from collections.abc import Mapping, Sequence

from hf_distill.training.losses import LOSSES, DivergenceLoss
from hf_distill.training.losses.base import Loss, Setup
from hf_distill.training.losses.layer_map import LayerPair, ModelLayers
from hf_distill.training.losses.schedules import Scheduled, Value, check_weight, is_on, parse_schedule
from hf_distill.training.scoring.capture import Layer, LayerCapture, Wanted, can_capture_attention

GivenLosses = Mapping[str, tuple[Loss, "Scheduled"]]
"""The `losses` argument of `DistillationTrainer`: pairs of a loss and its weight, a number or a schedule, by name."""


def check_given_losses(given: GivenLosses, weights: Mapping[str, Value]) -> None:
    """Checks the `losses` argument of `DistillationTrainer`.

    Args:
        given: the value of `losses`.
        weights: the weights of the `alpha_...` arguments, by name.

    Raises:
        TypeError: if `given` is not a mapping from names to pairs of a `Loss` and a number or schedule.
        ValueError: if a name is invalid or taken, if a schedule cannot be read, if a weight is below 0, if a loss does
            not read exactly one of logits, embeddings, last hidden states and mapped layers, or if it reads labels or
            groups, but no logits.
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
        try:
            check_weight(parse_schedule(weight))
        except (TypeError, ValueError) as error:
            raise type(error)(f"losses[{name!r}] has weight {weight!r}, which {error}") from None
        needs = loss.needs
        if needs.logits + needs.embeddings + needs.last_hidden_state + needs.layers != 1:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {needs}: a loss reads exactly one of logits, "
                f"embeddings, last_hidden_state and mapped layers (hidden_states, queries, keys and values)."
            )
        if needs.whole_step and (not needs.embeddings or next(loss.parameters(), None) is not None):
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {needs}: only a loss that reads embeddings and has "
                f"no parameters can read those of the whole step."
            )
        if loss.needs.labels and not loss.needs.logits:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {loss.needs}: only a loss that reads logits can "
                f"read labels."
            )
        if loss.needs.groups and not loss.needs.logits:
            raise ValueError(
                f"losses[{name!r}] is a {type(loss).__name__} with {loss.needs}: only a loss that reads logits can "
                f"read groups."
            )
        if is_on(weights.get(name, 0)):
            raise ValueError(
                f"losses[{name!r}] has the name of a built-in loss, which is on with alpha_{name}={weights[name]}: "
                f"choose another name, or set alpha_{name}=0 to replace the built-in loss."
            )


def make_losses(
    weights: Mapping[str, Value], given: GivenLosses, setup: Setup, previous: Mapping[str, Loss]
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
    _check_logits(weights, given, setup)
    _check_embeddings(weights, given, setup)
    for name in (name for name, weight in weights.items() if is_on(weight)):
        loss = given[name][0] if name in given else LOSSES[name].from_setup(setup)
        if name not in given and name in previous and loss.state_dict().keys() == previous[name].state_dict().keys():
            loss.load_state_dict(previous[name].state_dict())
        if loss.needs.layers and not loss.layers:
            loss.layers = setup.map_layers()
        if loss.needs.of_layer.attention:
            check_attention(setup.layers, loss.layers, name, loss)
        loss.check(setup.student, setup.teacher)
        losses[name] = loss
    return losses


def layer_captures(losses: Mapping[str, Loss], setup: Setup) -> tuple[LayerCapture | None, LayerCapture | None]:
    """The captures of student and teacher for the layers that the losses read; None for a model without such layers."""
    readers = [loss for loss in losses.values() if loss.needs.layers]
    if not readers:
        return None, None
    student, teacher = setup.layers
    of_student: dict[Layer, Wanted] = {}
    of_teacher: dict[Layer, Wanted] = {}
    for loss in readers:
        for pair in loss.layers:
            of_student[pair.of_student] = of_student.get(pair.of_student, Wanted()) | loss.needs.of_layer
            if loss.reads_teacher:
                of_teacher[pair.of_teacher] = of_teacher.get(pair.of_teacher, Wanted()) | loss.needs.of_layer
    return (
        LayerCapture(student.model, student.paths, of_student),
        LayerCapture(teacher.model, teacher.paths, of_teacher) if of_teacher else None,
    )


def check_attention(
    models: tuple[ModelLayers, ModelLayers], layers: Sequence[LayerPair], name: str, loss: Loss
) -> None:
    """Checks that the attention of the layers can be captured.

    Args:
        models: student and teacher.
        layers: the pairs of layers.
        name: name of the loss, for the error.
        loss: the loss.

    Raises:
        ValueError: if a layer does not call an attention function of transformers.
    """
    for pair in layers:
        for model, (stack, index) in zip(models, (pair.of_student, pair.of_teacher), strict=True):
            if not can_capture_attention(model.model.get_submodule(f"{model.paths[stack]}.{max(index, 0)}")):
                raise ValueError(
                    f"The loss {name!r} reads the attention of a {type(model.model).__name__}, which does not call the "
                    f"attention functions of transformers: {how_to_leave_out(name, loss)}."
                )


def _check_logits(weights: Mapping[str, Value], given: GivenLosses, setup: Setup) -> None:
    readers = {name: loss for name, loss in _on(weights, given).items() if loss.needs.logits}
    if readers and not setup.head.has_logits:
        in_code = [name_in_code(name, loss, weights[name]) for name, loss in readers.items()]
        ways = [how_to_leave_out(name, loss) for name, loss in readers.items()]
        if setup.head.has_embeddings:
            raise ValueError(
                f"{setup.student.model} returns vectors, so there are no logits for {' and '.join(in_code)}: "
                f"{' and '.join(ways)}, and alpha_embedding=1 to learn the teacher's vectors."
            )
        raise ValueError(
            f"{setup.student.model} has no head, so there are no logits for {' and '.join(in_code)}: "
            f"{' and '.join(ways)}, or load student and teacher with a class such as "
            f"AutoModelForSequenceClassification or AutoModelForMaskedLM."
        )


def _check_embeddings(weights: Mapping[str, Value], given: GivenLosses, setup: Setup) -> None:
    readers = {name: loss for name, loss in _on(weights, given).items() if loss.needs.embeddings}
    if readers and not setup.head.has_embeddings:
        in_code = [name_in_code(name, loss, weights[name]) for name, loss in readers.items()]
        ways = [how_to_leave_out(name, loss) for name, loss in readers.items()]
        raise ValueError(
            f"{setup.student.model} returns no vector per text, which {' and '.join(in_code)} compare: load student "
            f"and teacher with EmbeddingModel.from_pretrained(...), or {' and '.join(ways)}."
        )


def readers_of_teacher(weights: Mapping[str, Value], given: GivenLosses) -> list[str]:
    """The losses that compare the student with a teacher, as written in the user's code."""
    return [name_in_code(name, loss, weights[name]) for name, loss in _on(weights, given).items() if loss.reads_teacher]


def _on(weights: Mapping[str, Value], given: GivenLosses) -> dict[str, Loss | type[Loss]]:
    """The losses whose weight is not 0, by name. Built-in ones are classes."""
    return {
        name: given[name][0] if name in given else LOSSES[name] for name, weight in weights.items() if is_on(weight)
    }


def name_in_code(name: str, loss: Loss | type[Loss], weight: Value) -> str:
    """The loss as written in the user's code, such as `alpha_kl=5.0` or `losses['mine']`."""
    return f"alpha_{name}={weight}" if _is_of_arguments(name, loss) else f"losses[{name!r}]"


def how_to_leave_out(name: str, loss: Loss | type[Loss]) -> str:
    """The advice that turns a loss off, for an error message."""
    return f"set alpha_{name}=0" if _is_of_arguments(name, loss) else f"leave out losses[{name!r}]"


def name_of_label_reader(name: str, loss: Loss, weight: Value) -> str:
    """The argument that makes the loss read labels, as written in the user's code."""
    return f"divergence={loss.divergence!r}" if isinstance(loss, DivergenceLoss) else name_in_code(name, loss, weight)


def how_to_read_no_labels(name: str, loss: Loss) -> str:
    """The advice that makes labels unnecessary for the loss, for an error message."""
    return "choose another divergence" if isinstance(loss, DivergenceLoss) else how_to_leave_out(name, loss)


def _is_of_arguments(name: str, loss: Loss | type[Loss]) -> bool:
    """Whether the loss is a built-in one, not the user's own of the same name."""
    cls = loss if isinstance(loss, type) else type(loss)
    return issubclass(cls, LOSSES.get(name, ()))
