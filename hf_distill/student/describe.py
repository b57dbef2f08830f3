"""Describes a model: its modules, its stacks of layers, and the students that can be made from it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from torch import nn
from transformers import BertConfig, PreTrainedModel

from hf_distill.student.architectures import LayerStack, find_layer_stacks
from hf_distill.student.cutting import empty_student
from hf_distill.student.distilbert import to_distilbert
from hf_distill.student.layer_selection import select_layers

SHARES = [Fraction(3, 4), Fraction(2, 3), Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
"""Shares of the teacher's layers in the students shown."""


@dataclass(frozen=True)
class StudentSize:
    """A possible student: its number of layers per stack, and its computed size."""

    num_layers: dict[str, int]
    parameters: int
    operations: int
    """Multiplications per token: one per weight of a matrix, including experts that are not selected. Embedding
    lookups, and attention apart from its projections, are not counted."""
    family: str | None = None


def describe(model: PreTrainedModel) -> str:
    """Describes a model: a tree of its modules with parameter counts, its stacks of layers, and possible students.

    Equal consecutive layers are shown once (`0-11: BertLayer x 12`), shared weights are marked, and modules without
    parameters are left out. The expected speed-up is the ratio of multiplications per token; the real speed-up is lower
    at batch sizes and lengths where other work takes the time.

    Args:
        model: a transformers model. Weights are not read, so a model on the meta device works too.

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
    return "\n\n".join(["\n".join(_tree(model)), _students_text(model)])


def possible_students(model: PreTrainedModel, stacks: dict[str, LayerStack]) -> list[StudentSize]:
    """Students with some shares of the layers, deepest first. For BERT also a DistilBERT with half of the layers."""
    students: dict[tuple[int, ...] | str, StudentSize] = {}
    for share in SHARES:
        num_layers = {name: max(1, int(stack.num_layers * share)) for name, stack in stacks.items()}
        if all(num_layers[name] == stack.num_layers for name, stack in stacks.items()):
            continue
        kept = {name: select_layers(stack.num_layers, num_layers[name]) for name, stack in stacks.items()}
        with suppress(ValueError):  # layers of different kinds cannot replace each other
            student, _ = empty_student(model, stacks, kept)
            students[tuple(num_layers.values())] = StudentSize(num_layers, *_size(student))
            if share == Fraction(1, 2) and isinstance(model.config, BertConfig):
                student = to_distilbert(student)  # raises for heads that DistilBERT does not have
                students["distilbert"] = StudentSize(num_layers, *_size(student), family="distilbert")
    return list(students.values())


def _size(model: PreTrainedModel) -> tuple[int, int]:
    """Number of parameters, and multiplications per token."""
    operations = 0
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            operations += sum(weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1)
    return model.num_parameters(), operations


def _students_text(model: PreTrainedModel) -> str:
    try:
        stacks = find_layer_stacks(model)
    except ValueError as error:
        return str(error)
    lines = [
        f"Stack {name!r}: {stack.path}, {stack.num_layers} layers, `{'.'.join((*stack.config_path, stack.depth))}` in "
        f"its config"
        for name, stack in stacks.items()
    ]
    parameters, operations = _size(model)
    header = [" + ".join(stacks), "parameters", "of the teacher", "expected speed-up", "made by"]
    rows = [header]
    for student in possible_students(model, stacks):
        rows.append(
            [
                " + ".join(map(str, student.num_layers.values())),
                f"{student.parameters:,}",
                f"{student.parameters / parameters:.0%}",
                f"{operations / student.operations:.2f}",
                _call(student, stacks),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines += ["", "Students"]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  " + "   ".join([*cells, row[-1]]))
    return "\n".join(lines)


def _call(student: StudentSize, stacks: dict[str, LayerStack]) -> str:
    """The call of `make_student` that makes this student."""
    halves = {name: max(1, stack.num_layers // 2) for name, stack in stacks.items()}
    numbers = set(student.num_layers.values())
    arguments = ["teacher"]
    if student.num_layers != halves:
        arguments.append(f"num_layers={numbers.pop() if len(numbers) == 1 else student.num_layers}")
    if student.family is not None:
        arguments.append(f"family={student.family!r}")
    return f"make_student({', '.join(arguments)})"


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
