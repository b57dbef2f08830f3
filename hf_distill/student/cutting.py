"""Makes a model with fewer layers: reduces the config and copies the weights."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.student.architectures import LayerStack, skeleton, with_layers


def cut(
    teacher: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
    copy: bool = True,
) -> PreTrainedModel:
    """Makes a model of the teacher's class with only the kept layers of each stack.

    Args:
        teacher: the model to cut. It does not change.
        stacks: its stacks, by name.
        kept: indices of the layers to keep, by stack.
        copy: if False, the model shares the memory of the teacher's weights.

    Raises:
        ValueError: if a layer does not fit at its new index, or if weights that the config ties are different.
    """
    student, sources = empty_student(teacher, stacks, kept)
    weights = teacher.state_dict()
    shapes = {name: empty.shape for name, empty in student.state_dict().items()}

    def kept_part(name: str, weight: torch.Tensor) -> torch.Tensor:
        is_whole = weight.shape == shapes[name]
        return weight if is_whole else _blocks_of_kept_layers(weight, shapes[name], stacks, kept)

    load_parts(student, {name: weights[sources[name]] for name in shapes}, kept_part, copy)
    return student


def load_parts(
    student: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    part_of: Callable[[str, torch.Tensor], torch.Tensor],
    copy: bool = True,
) -> None:
    """Gives an empty student the kept parts of a teacher's weights. Tied weights are cut once.

    Args:
        student: the student, whose weights are on the meta device.
        weights: the teacher's weight for each weight of the student, by the student's name.
        part_of: gives what is kept of a weight: the weight itself, or a new tensor.
        copy: if False, a weight that is kept whole shares the teacher's memory.

    Raises:
        ValueError: if weights that the student's config ties have different values.
    """
    parts: dict[tuple, torch.Tensor] = {}
    loaded = {}
    for name, weight in weights.items():
        memory = (weight.data_ptr(), weight.shape, weight.stride())
        if memory not in parts:
            part = part_of(name, weight.detach())
            parts[memory] = part.clone() if copy and part.data_ptr() == weight.data_ptr() else part
        loaded[name] = parts[memory]
    student.load_state_dict(loaded, assign=True)
    student.tie_weights()
    for name, weight in student.state_dict().items():
        if weight.data_ptr() != loaded[name].data_ptr() and not torch.equal(weight, loaded[name]):
            raise ValueError(
                f"The config of {type(student).__name__} ties {name} to other weights, but their values differ in the "
                f"teacher: set tie_word_embeddings=False in its config."
            )


def empty_student(
    teacher: PreTrainedModel, stacks: Mapping[str, LayerStack], kept: Mapping[str, Sequence[int]]
) -> tuple[PreTrainedModel, dict[str, str]]:
    """Makes a student with empty weights, and maps each weight name to the teacher's weight to copy.

    Raises:
        ValueError: if a layer does not fit at its new index.
    """
    config = with_layers(teacher.config, {stacks[name]: kept[name] for name in stacks})
    try:
        student = skeleton(type(teacher), config, teacher.device, teacher.dtype)
    except Exception as error:  # model code may raise anything for a config that it was not made for
        raise ValueError(_misfit(teacher, kept, str(error))) from error
    leave_out_what_is_missing(student, teacher, [teacher.get_submodule(stack.path) for stack in stacks.values()])
    return student, _sources(student, teacher, stacks, kept)


def leave_out_what_is_missing(student: nn.Module, teacher: nn.Module, stacks: Sequence[nn.Module]) -> None:
    """Removes modules that the teacher does not have, such as BERT's pooler with `add_pooling_layer=False`."""
    for name, module in list(student.named_children()):
        teachers_own = getattr(teacher, name)
        if teachers_own is None:
            setattr(student, name, None)
        elif not any(teachers_own is stack for stack in stacks):
            leave_out_what_is_missing(module, teachers_own, stacks)


def _sources(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
) -> dict[str, str]:
    """Maps the name of each student weight to the name of the teacher weight to copy.

    A weight that belongs to an index rather than to a layer, such as the relative position bias of T5's first layer, is
    copied from the teacher's layer at the same index. From a weight with one block per layer, the blocks of the kept
    layers are copied.
    """
    student_shapes = {name: weight.shape for name, weight in student.state_dict().items()}
    teacher_shapes = {name: weight.shape for name, weight in teacher.state_dict().items()}
    stack_of_path = {stack.path: name for name, stack in stacks.items()}
    in_stack = re.compile(rf"({'|'.join(map(re.escape, stack_of_path))})\.(\d+)\.(.*)")
    sources = {}
    for name, shape in student_shapes.items():
        source = name
        match = in_stack.fullmatch(name)
        if match is not None:
            path, new, rest = match.groups()
            source = f"{path}.{kept[stack_of_path[path]][int(new)]}.{rest}"
        if source not in teacher_shapes:
            source = name
        if source not in teacher_shapes:
            raise ValueError(_misfit(teacher, kept, f"the student needs {name}, which the teacher does not have"))
        teacher_shape = teacher_shapes[source]
        if teacher_shape != shape and (match is not None or _blocks(teacher_shape, shape, stacks, kept) is None):
            shapes = f"{source} has the shape {tuple(teacher_shape)}, but {tuple(shape)} in the student"
            raise ValueError(_misfit(teacher, kept, shapes))
        sources[name] = source
    used = set(sources.values())
    for name in teacher_shapes:
        match = in_stack.fullmatch(name)
        is_kept = match is None or int(match[2]) in kept[stack_of_path[match[1]]]
        if is_kept and name not in used:
            raise ValueError(_misfit(teacher, kept, f"the student has no place for {name}"))
    return sources


def _blocks(
    teacher_shape: torch.Size, shape: torch.Size, stacks: Mapping[str, LayerStack], kept: Mapping[str, Sequence[int]]
) -> tuple[int, str] | None:
    """Dimension and stack for which a weight has one block per layer, or None.

    Gemma 3n has one table with the embeddings of all layers, and ESM's contact head reads the attention of every layer.
    """
    if len(shape) != len(teacher_shape):
        return None
    differing = [dim for dim in range(len(shape)) if shape[dim] != teacher_shape[dim]]
    if len(differing) != 1:
        return None
    (dim,) = differing
    for name, stack in stacks.items():
        if shape[dim] * stack.num_layers == teacher_shape[dim] * len(kept[name]):
            return dim, name
    return None


def _blocks_of_kept_layers(
    weight: torch.Tensor, shape: torch.Size, stacks: Mapping[str, LayerStack], kept: Mapping[str, Sequence[int]]
) -> torch.Tensor:
    blocks = _blocks(weight.shape, shape, stacks, kept)
    assert blocks is not None  # `_sources` has checked it
    dim, name = blocks
    by_layer = weight.unflatten(dim, (stacks[name].num_layers, -1))
    return by_layer.index_select(dim, torch.tensor(kept[name], device=weight.device)).flatten(dim, dim + 1)


def _misfit(teacher: PreTrainedModel, kept: Mapping[str, Sequence[int]], what: str) -> str:
    layers = ", ".join(f"{name} {list(indices)}" for name, indices in kept.items())
    return (
        f"{type(teacher).__name__} cannot be cut to {layers}: {what}. If the kind of a layer depends on its index, "
        f"choose layers of the same kind as the indices that they move to, and keep the first layer."
    )
