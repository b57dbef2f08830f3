"""The sizes that a student is asked for, by axis of the teacher."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from hf_distill.student.axes import FEED_FORWARD, HEADS, HIDDEN, KEY_VALUE_HEADS, Axis, axis_of

KINDS = {
    "intermediate_size": FEED_FORWARD,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "hidden_size": HIDDEN,
}
"""The arguments of `make_student` that are sizes, and the kind of axis that each one sets, whatever its name is."""

Size = int | Mapping[str, int]


def sizes_by_axis(teacher: PreTrainedModel, axes: Sequence[Axis], sizes: Mapping[str, Size | None]) -> dict[Axis, int]:
    """Resolves the arguments of `make_student` to axes. Sizes equal to the teacher's are left out.

    A number of heads without a number of key-value heads keeps the number of heads for each of these.

    Args:
        teacher: the model to cut.
        axes: its axes.
        sizes: by argument, one size for all axes of the kind, or a size by stack of layers.

    Raises:
        ValueError: if the teacher has no such axis, or if a size does not fit.
    """
    numbers: dict[Axis, int] = {}
    for argument, size in sizes.items():
        if size is not None:
            numbers |= _of_argument(teacher, argument, size, axis_of(axes, KINDS[argument]), axes)
    for shared in axis_of(axes, KEY_VALUE_HEADS):
        if shared not in numbers and sizes.get("num_key_value_heads") is None:
            numbers |= _with_whole_groups(shared, numbers)
    return {axis: size for axis, size in numbers.items() if size != axis.size}


def _of_argument(
    teacher: PreTrainedModel, argument: str, size: Size, found: Sequence[Axis], axes: Sequence[Axis]
) -> dict[Axis, int]:
    if not found:
        others = ", ".join(f"{axis.name} ({axis.kind})" for axis in axes if axis.kind in KINDS.values()) or "none"
        raise ValueError(
            f"{argument}={size!r}, but the config of {type(teacher).__name__} has no number for the {KINDS[argument]}. "
            f"It has: {others}."
        )
    by_stack = {axis.stack or axis.name: axis for axis in found}
    if isinstance(size, Mapping):
        if unknown := sorted(set(size) - set(by_stack)):
            raise ValueError(
                f"{argument}={dict(size)!r} names {', '.join(map(repr, unknown))}, but there is one for each of "
                f"{', '.join(map(repr, by_stack))}."
            )
        return {by_stack[name]: _checked(argument, own, by_stack[name]) for name, own in size.items()}
    return {axis: _checked(argument, size, axis) for axis in found}


def _checked(argument: str, size: object, axis: Axis) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= axis.size:
        raise ValueError(
            f"{argument}={size!r}, but the teacher has {axis.name}={axis.size}: use an integer from 1 to {axis.size}."
        )
    return size


def _with_whole_groups(shared: Axis, numbers: Mapping[Axis, int]) -> dict[Axis, int]:
    """The number of key-value heads that leaves as many heads for each of them as in the teacher."""
    for axis, size in numbers.items():
        if axis.kind == HEADS and axis.config_path == shared.config_path and axis.size % shared.size == 0:
            per_group = axis.size // shared.size
            if size % per_group:
                raise ValueError(
                    f"{axis.number}={size}, but {per_group} heads of the teacher share each of its {shared.size} "
                    f"key-value heads: use a multiple of {per_group}, or give num_key_value_heads= too."
                )
            return {shared: size // per_group}
    return {}
