"""Describes a model: its modules, its stacks of layers, its sizes, and the students that can be made from it."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from hf_distill.machine import machine
from hf_distill.student.architectures import LayerStack, find_layer_stacks
from hf_distill.student.axes import HEADS, HIDDEN, KEY_VALUE_HEADS, OTHER, VOCABULARY, Axis, axis_of, find_axes
from hf_distill.student.latency import product_seconds
from hf_distill.student.model_size import int8_bytes_of, operations_of
from hf_distill.student.proposals import possible_students
from hf_distill.student.width.sizes import KINDS

WIDTH = 110
"""Most characters in a line of the tables."""

NUM_TOKENS = 128


def describe(model: PreTrainedModel, *, latency: bool = False) -> str:
    """Describes a model: a tree of its modules with parameter counts, its stacks of layers, the numbers of its config
    that shape weights, and possible students.

    Equal consecutive layers are shown once (`0-11: BertLayer x 12`), shared weights are marked, and modules without
    parameters are left out. For each student there are the parameters and their share, megabytes in fp32 and in int8,
    and multiplications per token: one for each weight of a matrix, including experts that are not selected, without
    embedding lookups and attention apart from its projections.

    Args:
        model: a transformers model. Weights are not read, so a model on the meta device works too.
        latency: add the milliseconds that one thread of this machine's CPU needs for the matrix products of one text
            of 128 tokens. They are measured with matrices of the same shapes, in about two seconds.

    Returns:
        The description, several lines of text.

    Raises:
        TypeError: if `model` is not a transformers model.

    Example:
        >>> config = AutoConfig.from_pretrained("FacebookAI/roberta-base")
        >>> print(describe(AutoModelForMaskedLM.from_config(config)))
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"describe needs a transformers model, but got {type(model).__name__}: load the model first, or make it "
            f"from a config with AutoModel.from_config(config)."
        )
    try:
        stacks, why_none = find_layer_stacks(model), ""
    except ValueError as error:
        stacks, why_none = {}, str(error)
    axes = find_axes(model)
    of_stacks = _stacks(stacks) or textwrap.wrap(why_none, WIDTH)
    parts = [_tree(model), of_stacks, _sizes(axes), _students(model, stacks, axes, latency)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _stacks(stacks: Mapping[str, LayerStack]) -> list[str]:
    return [
        f"Stack {name!r}: {stack.path}, {stack.num_layers} layers, `{'.'.join((*stack.config_path, stack.depth))}` in "
        f"its config"
        for name, stack in stacks.items()
    ]


def _sizes(axes: Sequence[Axis]) -> list[str]:
    """The numbers of the config that shape weights, and how each one is cut."""
    if not axes:
        return []
    rows = [["in its config", "size", "kind", "made smaller by"]]
    rows += [[axis.name, f"{axis.size:,}", axis.kind, _cut_by(axis, axes)] for axis in axes if axis.kind != OTHER]
    lines = ["Sizes", *_table(rows, to_the_right=[1])] if len(rows) > 1 else []
    if others := [f"{axis.name} {axis.size:,}" for axis in axis_of(axes, OTHER)]:
        title = "  Other sizes, which stay: " if lines else "Sizes, which stay: "
        lines += textwrap.wrap(title + ", ".join(others), WIDTH, subsequent_indent="  ")
    return lines


def _cut_by(axis: Axis, axes: Sequence[Axis]) -> str:
    """What makes a size smaller."""
    if axis.kind == VOCABULARY:
        return "trim_vocabulary"
    argument = next(argument for argument, kind in KINDS.items() if kind == axis.kind)
    of_kind = axis_of(axes, axis.kind)
    name = argument if len(of_kind) == 1 else f"{argument}, stack {axis.stack or axis.name!r}"
    if axis.kind == HEADS and not axis.places:
        same_config = [own for own in axis_of(axes, HIDDEN) if own.config_path == axis.config_path]
        if not same_config:
            return "nothing: heads would change their width"
        return f"{name} and hidden_size: heads of {same_config[0].size // axis.size}"
    if axis.kind == KEY_VALUE_HEADS:
        heads = next((own for own in axis_of(axes, HEADS) if own.config_path == axis.config_path), axis)
        return f"{name}: for {heads.size // axis.size} heads each"
    return f"{name}, the same as {', '.join(axis.together)}" if axis.together else name


def _students(
    model: PreTrainedModel, stacks: Mapping[str, LayerStack], axes: Sequence[Axis], latency: bool
) -> list[str]:
    """The table of possible students, in the order of `possible_students`."""
    students = possible_students(model, stacks, axes)
    if not students:
        return []
    models = [model, *(own.student for own in students)]
    header = ["parameters", "share", "MB", "MB in int8", "multiplications"]
    rows = [header]
    for own in models:
        parameters = own.num_parameters()
        rows.append(
            [
                f"{parameters:,}",
                f"{parameters / model.num_parameters():.0%}",
                f"{4 * parameters / 1e6:,.1f}",
                f"{int8_bytes_of(own) / 1e6:,.1f}",
                f"{operations_of(own) / 1e6:,.1f} M",
            ]
        )
    if latency:
        seconds = product_seconds(models, NUM_TOKENS)
        header.append("ms")
        for row, own_seconds in zip(rows[1:], seconds, strict=True):
            row.append(f"{1e3 * own_seconds:,.1f}")
    made_by = ["made by", "(the teacher)", *(own.call for own in students)]
    for row, call in zip(rows, made_by, strict=True):
        row.append(call)
    lines = ["Students", *_table(rows, to_the_right=range(len(header) - 1))]
    lines += ["", "MB: megabytes of the weights in fp32, and about in int8. Multiplications: per token, in millions."]
    if any(own.arguments.keys() & KINDS.keys() for own in students):
        lines.append(
            "Only shapes are known here: make_student checks each student, and raises an error if a width cannot be "
            "cut."
        )
    if latency:
        lines += textwrap.wrap(
            f"ms: the matrix products alone of one text of {NUM_TOKENS} tokens, measured with matrices of the same "
            f"shapes in fp32 on one thread of this CPU, {machine()['cpu']}. The rest of a forward pass takes time too.",
            WIDTH,
        )
    return lines


def _table(rows: Sequence[Sequence[str]], to_the_right: Sequence[int]) -> list[str]:
    """The rows with aligned columns. A long last column continues on the next line, at a comma."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in to_the_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        start = "  " + "   ".join(cells) + "   "
        last = row[-1].replace(": ", ":\xa0")  # no break between a name and its value
        first, *rest = textwrap.wrap(last, WIDTH - len(start), break_long_words=False)
        lines += [line.replace("\xa0", " ") for line in (start + first, *(" " * len(start) + line for line in rest))]
    return lines


def _tree(model: PreTrainedModel) -> list[str]:
    first_names: dict[int, str] = {}
    """First name found for each weight."""
    lines = [(type(model).__name__, f"{model.num_parameters():,}", "")]
    lines += _branches(model, "", "  ", first_names)
    width = max(len(text) for text, _, _ in lines)
    counts = max(len(count) for _, count, _ in lines)
    return [f"{text.ljust(width)}  {count.rjust(counts)}  {remark}".rstrip() for text, count, remark in lines]


def _branches(module: nn.Module, path: str, indent: str, first_names: dict[int, str]) -> Iterator[tuple[str, str, str]]:
    """Lines for the content of `module`: text, number of parameters, and a remark."""
    for name, weight in module.named_parameters(recurse=False):
        if not _is_leaf(module):
            yield f"{indent}{name}: {list(weight.shape)}", f"{weight.numel():,}", ""
    for names, child in _folded(module):
        count = sum(weight.numel() for weight in child.parameters())
        if count == 0:
            continue
        remarks = []
        for name, weight in child.named_parameters(recurse=_is_leaf(child), remove_duplicate=False):
            own_name = f"{path}{names[0]}.{name}"
            if (first := first_names.setdefault(id(weight), own_name)) != own_name:
                remarks.append(f"{name} is {first}")
        times = f" x {len(names)}" if len(names) > 1 else ""
        number = names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}"
        own = getattr(child, "weight", None) if _is_leaf(child) else None
        shape = "" if own is None else f" {list(own.shape)}"
        yield f"{indent}{number}: {type(child).__name__}{shape}{times}", f"{count * len(names):,}", ", ".join(remarks)
        yield from _branches(child, f"{path}{names[0]}.", indent + "  ", first_names)


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _folded(module: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """Submodules, with equal consecutive modules of a list grouped: their names, and the first module."""
    names: list[str] = []
    first = None
    for name, child in module._modules.items():
        if child is None:
            continue
        if first is not None and isinstance(module, nn.ModuleList) and _kind(child) == _kind(first):
            names.append(name)
            continue
        if first is not None:
            yield names, first
        names, first = [name], child
    if first is not None:
        yield names, first


def _kind(module: nn.Module) -> tuple:
    weights = tuple((name, tuple(weight.shape)) for name, weight in module.named_parameters())
    return type(module), weights
