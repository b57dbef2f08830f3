"""Checks that a student computes the same as its teacher without the removed layers."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.copies import without_autocast
from hf_distill.student.architectures import LayerStack, example_inputs


@contextmanager
def wrapping(
    layers: Collection[nn.Module], wrapper: Callable[[nn.Module, torch.Tensor, Any], object]
) -> Iterator[None]:
    """Inside this context, a layer returns `wrapper(layer, its input hidden states, its output)`."""
    own_forwards = {layer: vars(layer).get("forward") for layer in layers}  # offloading sets one on the instance

    def wrapped(layer: nn.Module) -> Callable:
        own_forward = layer.forward

        def forward(*args: Any, **kwargs: Any) -> object:
            hidden_states = args[0] if args else next(iter(kwargs.values()))
            return wrapper(layer, hidden_states, own_forward(*args, **kwargs))

        return forward

    try:
        for layer in layers:
            layer.forward = wrapped(layer)  # not a hook: some models call `layer.forward` directly
        yield
    finally:
        for layer, own_forward in own_forwards.items():
            vars(layer).pop("forward", None)
            if own_forward is not None:
                layer.forward = own_forward


@contextmanager
def skipping(layers: Collection[nn.Module]) -> Iterator[Counter[nn.Module]]:
    """Inside this context, each of `layers` returns its input hidden states unchanged. Yields a counter of its calls.

    The other outputs of a layer are kept, such as the position bias that T5's first layer computes for the others.
    """
    calls: Counter[nn.Module] = Counter()

    def giving_back(layer: nn.Module, hidden_states: torch.Tensor, output: Any) -> object:
        calls[layer] += 1
        if isinstance(output, Mapping):
            return {**output, next(iter(output)): hidden_states}
        return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

    with wrapping(layers, giving_back):
        yield calls


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside this context, the model is in evaluation mode, without gradients and autocast. Its modes are restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), without_autocast(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def left_out(model: PreTrainedModel, stacks: Mapping[str, LayerStack], kept: Mapping[str, Sequence[int]]) -> list:
    """The layers of `model` that are removed."""
    return [
        layer
        for name, stack in stacks.items()
        for index, layer in enumerate(model.get_submodule(stack.path))
        if index not in kept[name]
    ]


def run(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, object]:
    """The outputs of the model."""
    torch.manual_seed(0)  # some models, such as masked auto-encoders, draw what they mask in evaluation too
    return model(**inputs, return_dict=True)


def run_whole(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, object], bool]:
    """The outputs of the model, or of the part below a head that needs other inputs, such as multiple choice.

    Returns:
        The outputs, and whether they are of the part below the head.
    """
    try:
        return run(model, inputs), False
    except Exception:
        return run(model.base_model, inputs), True


def differences(
    expected: Mapping[str, object],
    actual: Mapping[str, object],
    fitting: Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]] | None = None,
) -> dict[str, float]:
    """How much the outputs of a student differ from those of its teacher, relative to their norm, by name.

    Args:
        expected: outputs of the teacher.
        actual: outputs of the student.
        fitting: gives what a student may have of an output of the teacher, in the student's shape. The least difference
            counts; it is infinite if there is nothing. Default: the output itself.

    Raises:
        ValueError: if there is no tensor that both return.
    """
    found: dict[str, float] = {}
    for name, values in expected.items():
        own = actual.get(name)
        if isinstance(values, torch.Tensor) and isinstance(own, torch.Tensor):
            candidates = [values] if fitting is None else fitting(values, own)
            found[name] = min((_difference(own, candidate) for candidate in candidates), default=math.inf)
    if not found:
        raise ValueError(
            f"The teacher and its student have no output tensor in common: the teacher returns {', '.join(expected)}, "
            f"the student {', '.join(actual)}. Pass example_inputs= for which both return the same tensor."
        )
    return found


def is_rounding(difference: float, dtype: torch.dtype) -> bool:
    """Whether a relative difference comes from rounding."""
    return difference <= torch.finfo(dtype).eps ** 0.5


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


def prove(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Runs student and teacher once and compares their outputs.

    Args:
        student: the student.
        teacher: the teacher, whose removed layers are skipped.
        stacks: the teacher's stacks, by name.
        kept: indices of the kept layers, by stack.
        inputs: a batch for both models. Default: a few tokens, an image or one second of audio.

    Raises:
        ValueError: if the outputs differ, if a model does not run on these inputs, or if the inputs do not pass
            through a stack that was cut.
    """
    skipped = left_out(teacher, stacks, kept)
    # The head is not run if it can be avoided: its weights are copied unchanged, and every head needs other inputs.
    below = set(teacher.base_model.modules())
    whole = not below.issuperset(skipped)
    with evaluating(teacher), evaluating(student), skipping(skipped) as calls, torch.random.fork_rng():
        made_up = inputs is None
        if inputs is None:
            torch.manual_seed(0)
            inputs = example_inputs(teacher)
        outputs = []
        for model in (teacher, student):
            try:
                outputs.append(run(model if whole else model.base_model, inputs))
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} does not run on {'the default inputs' if made_up else 'example_inputs'}: "
                    f"{error}. Pass example_inputs=, a batch of its inputs, so that the student can be checked against "
                    f"the teacher."
                ) from error
    for name, stack in stacks.items():
        unused = [layer for layer in skipped if layer in set(teacher.get_submodule(stack.path)) and not calls[layer]]
        if unused:
            raise ValueError(
                f"The stack {name!r} is cut, but {', '.join(inputs)} did not pass through it, so the student could not "
                f"be checked: pass example_inputs=, a batch that uses this stack, or keep all its layers."
            )
    expected, actual = outputs
    for name, difference in differences(expected, actual).items():
        if not is_rounding(difference, teacher.dtype):
            raise ValueError(
                f"The student's {name} does not match {type(teacher).__name__} without the removed layers (relative "
                f"difference {difference:.1e}): the layers depend on each other in a way that hf_distill does not "
                f"support. Try other layers, and keep the first one."
            )
