"""Which layer of the teacher each layer of the student is compared with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from transformers import PreTrainedConfig, PreTrainedModel

from hf_distill.student.architectures import LayerStack, find_layer_stacks
from hf_distill.training.scoring.capture import EMBEDDINGS, Layer

LayerMap = Sequence[Sequence[int]] | Mapping[str, Sequence[Sequence[int]]] | str
"""The argument `layer_map`: pairs of a student layer and a teacher layer, or pairs by stack, or either as JSON."""


@dataclass(frozen=True)
class LayerPair:
    """A layer of the student and the layer of the teacher that it is compared with, both counted from 0.

    Attributes:
        stack: name of the stack of layers, as `hf-distill inspect` lists it.
        student: index of the student's layer; -1 for the embeddings.
        teacher: index of the teacher's layer; -1 for the embeddings.
    """

    stack: str
    student: int
    teacher: int

    @property
    def of_student(self) -> Layer:
        return self.stack, self.student

    @property
    def of_teacher(self) -> Layer:
        return self.stack, self.teacher


@dataclass(frozen=True)
class ModelLayers:
    """The stacks of layers of a model that losses compare.

    Attributes:
        model: the model.
        stacks: its stacks by name. An encoder-decoder has two. Of a model that reads images and text, only the stack
            that reads text is compared.
    """

    model: PreTrainedModel
    stacks: Mapping[str, LayerStack]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelLayers":
        """Finds the stacks of a model.

        Raises:
            ValueError: if it has no stack of layers, or several of which none reads text.
        """
        try:
            stacks = find_layer_stacks(model)
        except ValueError as error:
            raise ValueError(
                f"The layers of a {type(model).__name__} cannot be compared: {error} Set alpha_hidden, alpha_attention "
                f"and alpha_relation to 0."
            ) from None
        if model.config.is_encoder_decoder:
            stacks = _encoder_and_decoder(stacks)
        elif len(stacks) > 1:
            if "text" not in stacks:
                raise ValueError(
                    f"The layers of a {type(model).__name__} cannot be compared, because it has the stacks "
                    f"{', '.join(map(repr, stacks))} and none is named 'text': turn off the losses that read layers."
                )
            stacks = {"text": stacks["text"]}
        return cls(model, stacks)

    @property
    def paths(self) -> dict[str, str]:
        """The path of each stack in the model."""
        return {name: stack.path for name, stack in self.stacks.items()}

    def config_of(self, stack: str) -> PreTrainedConfig:
        """The config that describes a stack."""
        return reduce(getattr, self.stacks[stack].config_path, self.model.config)


def check_same_stacks(student: ModelLayers, teacher: ModelLayers) -> None:
    """Checks that each layer of the student has layers of the teacher to be compared with.

    Raises:
        ValueError: if the stacks of student and teacher differ.
    """
    if student.stacks.keys() != teacher.stacks.keys():
        raise ValueError(
            f"The layers of student and teacher cannot be paired: the student has the stacks "
            f"{', '.join(student.stacks)} and the teacher {', '.join(teacher.stacks)}. Take a student and a teacher of "
            f"the same kind, or set alpha_hidden, alpha_attention and alpha_relation to 0."
        )


def _encoder_and_decoder(stacks: Mapping[str, LayerStack]) -> dict[str, LayerStack]:
    """The stacks of an encoder-decoder by these names, without a stack that reads images if another reads text."""
    decoders = [stack for stack in stacks.values() if "decoder" in stack.path]
    encoders = [stack for name, stack in stacks.items() if "decoder" not in stack.path and name != "vision"]
    named = {"encoder": encoders or [stack for stack in stacks.values() if "decoder" not in stack.path]}
    named["decoder"] = decoders
    return {name: of_name[0] for name, of_name in named.items() if of_name}


def map_layers(
    student: ModelLayers, teacher: ModelLayers, given: LayerMap | None = None, embeddings: bool = False
) -> tuple[LayerPair, ...]:
    """Pairs the layers of student and teacher.

    By default, the output of student layer i is compared with the output of the last teacher layer before the one that
    student layer i + 1 was copied from, and last with last. `make_student` records which layers it copied. For a
    student of another origin the map is uniform, as in TinyBERT: student layer i of M with teacher layer
    `(i + 1) * N // M - 1` of N. Both rules give the same pairs for `layers="alternate"`.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351

    Args:
        student: the student's stacks.
        teacher: the teacher's stacks.
        given: the argument `layer_map`; None for the default.
        embeddings: also pair the embeddings of each stack.

    Raises:
        ValueError: if the stacks differ, or if `given` does not match the models.

    Example:
        >>> map_layers(ModelLayers.of(student), ModelLayers.of(teacher))  # 3 layers, cut from 6
        (LayerPair('layers', 0, 1), LayerPair('layers', 1, 3), LayerPair('layers', 2, 5))
    """
    check_same_stacks(student, teacher)
    pairs = []
    by_stack = None if given is None else _given_by_stack(given, list(student.stacks))
    for name, stack in student.stacks.items():
        numbers = stack.num_layers, teacher.stacks[name].num_layers
        if by_stack is None:
            layers = _default_map(*numbers, _copied_layers(student.model, name, *numbers))
        else:
            layers = [(of_student, of_teacher) for of_student, of_teacher in by_stack.get(name, [])]
            _check_map(layers, name, *numbers)
        if embeddings and (by_stack is None or layers):
            layers = [(EMBEDDINGS, EMBEDDINGS), *layers]
        pairs += [LayerPair(name, *pair) for pair in layers]
    return tuple(pairs)


def _copied_layers(student: PreTrainedModel, stack: str, num_layers: int, num_teacher_layers: int) -> list[int] | None:
    """The teacher layers that `make_student` copied into a stack; None if it did not, or not from such a teacher."""
    provenance = getattr(student.config, "distilled_from", None) or {}
    kept, depth = (
        value.get(stack) if isinstance(value, Mapping) else value
        for value in (provenance.get("layers"), provenance.get("num_teacher_layers"))
    )
    return kept if depth == num_teacher_layers and kept is not None and len(kept) == num_layers else None


def _default_map(num_layers: int, num_teacher_layers: int, copied: list[int] | None) -> list[tuple[int, int]]:
    if copied is not None:
        ends = [*copied[1:], num_teacher_layers]
    else:
        ends = [max((i + 1) * num_teacher_layers // num_layers, 1) for i in range(num_layers)]
    return [(i, end - 1) for i, end in enumerate(ends)]


def _given_by_stack(given: LayerMap, stacks: list[str]) -> dict[str, Sequence[Sequence[int]]]:
    """The argument `layer_map` by name of the stack."""
    example = "[[0, 1], [1, 3]]"
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise ValueError(f"layer_map={given!r} is not JSON: write for example layer_map='{example}'.") from None
    if not isinstance(given, Mapping):
        if len(stacks) > 1:
            by_name = ", ".join(f'"{name}": {example}' for name in stacks)
            raise ValueError(f"layer_map={given!r} must name the stack of each pair: layer_map={{{by_name}}}.")
        given = {stacks[0]: given}  # type: ignore[dict-item]
    if unknown := sorted(given.keys() - set(stacks)):
        raise ValueError(
            f"layer_map has the stacks {', '.join(map(repr, unknown))}, but the student has "
            f"{', '.join(map(repr, stacks))}: use these names."
        )
    for pairs in given.values():
        if not isinstance(pairs, list | tuple) or not all(_is_pair(pair) for pair in pairs):
            raise ValueError(f"layer_map={pairs!r} must be a list of pairs [student layer, teacher layer]: {example}.")
    if not any(given.values()):
        raise ValueError(f"layer_map={given!r} has no pairs: give at least one, or leave it out for the default map.")
    return dict(given)


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return all(isinstance(layer, int) and not isinstance(layer, bool) for layer in pair)


def _check_map(pairs: Sequence[tuple[int, int]], stack: str, num_layers: int, num_teacher_layers: int) -> None:
    layers = [list(pair) for pair in pairs]
    outside = [pair for pair in layers if not (0 <= pair[0] < num_layers and 0 <= pair[1] < num_teacher_layers)]
    if outside:
        hint = ""
        if [0, 0] in layers or any(EMBEDDINGS in pair for pair in layers):
            hint = (
                " The embeddings are not a layer: count the layers from 0, and set hidden_embeddings=True to compare "
                "the embeddings too."
            )
        raise ValueError(
            f"layer_map={layers}: {', '.join(map(str, outside))} is outside the stack {stack!r}. The student's layers "
            f"are 0 to {num_layers - 1}, the teacher's 0 to {num_teacher_layers - 1}.{hint}"
        )
    students = [student for student, _ in pairs]
    if repeated := sorted({student for student in students if students.count(student) > 1}):
        raise ValueError(
            f"layer_map={layers}: student layer {', '.join(map(str, repeated))} is repeated. Compare each student "
            f"layer with one teacher layer."
        )
