"""The proof of a student: it computes what its teacher computes when the other layers are left out."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.student.architectures import LayerStack, example_inputs


@contextmanager
def skipping(layers: Collection[nn.Module]) -> Iterator[Counter[nn.Module]]:
    """While open, each of `layers` gives back the hidden states that it was given; counts how often it was called.

    Whatever else a layer returns, such as the position bias that T5's first one makes for the others, stays its own.
    """
    calls: Counter[nn.Module] = Counter()
    own_forwards = {layer: vars(layer).get("forward") for layer in layers}  # some that offload have set one

    def giving_back(layer: nn.Module) -> Callable:
        own_forward = layer.forward

        def forward(*args: object, **kwargs: object) -> object:
            calls[layer] += 1
            hidden_states = args[0] if args else next(iter(kwargs.values()))
            output = own_forward(*args, **kwargs)
            if isinstance(output, Mapping):
                return {**output, next(iter(output)): hidden_states}
            return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

        return forward

    try:
        for layer in layers:
            layer.forward = giving_back(layer)  # not a hook: some models call the forward of their layers themselves
        yield calls
    finally:
        for layer, own_forward in own_forwards.items():
            vars(layer).pop("forward", None)
            if own_forward is not None:
                layer.forward = own_forward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While open, the model is in evaluation mode, without gradients; afterwards each module is in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def left_out(model: PreTrainedModel, stacks: Mapping[str, LayerStack], kept: Mapping[str, Sequence[int]]) -> list:
    """The layers of `model` that are not kept."""
    return [
        layer
        for name, stack in stacks.items()
        for index, layer in enumerate(model.get_submodule(stack.path))
        if index not in kept[name]
    ]


def prove(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Runs both once and compares what they give.

    Args:
        inputs: a batch that both understand; by default some tokens, an image or a second of sound.

    Raises:
        ValueError: if the two differ, if the teacher does not run on these inputs, or if they leave a stack that was
            cut unused.
    """
    skipped = left_out(teacher, stacks, kept)
    # The head is the teacher's own, weight by weight, and each has other inputs: below it, all models are alike.
    below = set(teacher.base_model.modules())
    whole = not below.issuperset(skipped)
    with evaluating(teacher), evaluating(student), skipping(skipped) as calls, torch.random.fork_rng():
        made_up = inputs is None
        if inputs is None:
            torch.manual_seed(0)
            inputs = example_inputs(teacher)
        outputs = []
        for model in (teacher, student):
            torch.manual_seed(0)  # some models, such as masked auto-encoders, draw what they mask in evaluation too
            try:
                outputs.append((model if whole else model.base_model)(**inputs, return_dict=True))
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} does not run on "
                    f"{'the inputs that were made up for it' if made_up else 'the example_inputs'}: {error}. Pass "
                    f"example_inputs=, a batch that it understands, so that the student can be checked against it."
                ) from error
    for name, stack in stacks.items():
        unused = [layer for layer in skipped if layer in set(teacher.get_submodule(stack.path)) and not calls[layer]]
        if unused:
            raise ValueError(
                f"The stack {name!r} is cut, but {', '.join(inputs)} did not pass through it, so that the student "
                f"could not be checked: pass example_inputs=, a batch that uses it, or keep it whole."
            )
    teacher_outputs, student_outputs = outputs
    compared = 0
    for name, expected in teacher_outputs.items():
        actual = student_outputs.get(name)
        if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
            continue
        compared += 1
        difference, norm = (actual.double() - expected.double()).norm(), expected.double().norm()
        if not difference <= torch.finfo(teacher.dtype).eps ** 0.5 * norm:
            raise ValueError(
                f"The student's {name} differs from what {type(teacher).__name__} gives without the layers that were "
                f"left out, by {difference / norm:.1e} of its norm: its layers depend on each other in a way that is "
                f"not known here. Other layers, the first one among them, may work."
            )
    if not compared:
        raise ValueError(
            f"{type(teacher).__name__} and its student have no tensor in common that could be compared: the one gives "
            f"{', '.join(teacher_outputs)}, the other {', '.join(student_outputs)}. Pass example_inputs= for which "
            f"they give one."
        )
