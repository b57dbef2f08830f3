"""Checks that a loss does not depend on how an optimizer step is split."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from hf_distill.training.losses import LOSSES, Loss
from hf_distill.training.scoring import pieces
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.training.training_args import DistillationTrainingArguments

POSITIONS_PER_PIECE = 4
"""Positions per piece when a loss over logits is tried on small pieces."""

ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 1,
    "train_sampling_strategy": "sequential",
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "learning_rate": 0.0,
    **{f"alpha_{name}": 0.0 for name in LOSSES},
}


@dataclass(frozen=True)
class SplitInvariance:
    """How much a loss depends on how a step is split.

    Attributes:
        loss: largest difference from the loss of one whole batch, relative to that loss.
        gradient: largest norm of the difference from the gradient of one whole batch, relative to its norm.
        parts: the numbers of micro-batches that the step was split into.
    """

    loss: float
    gradient: float
    parts: tuple[int, ...]


def check_split_invariance(
    loss: Loss,
    *,
    model: PreTrainedModel | PeftModel,
    train_dataset: Sequence[Mapping],
    teacher_model: PreTrainedModel | PeftModel | None = None,
    data_collator: Callable | None = None,
    processing_class: object = None,
    tolerance: float = 1e-6,
    **arguments: Any,
) -> SplitInvariance:
    """Checks that a loss and its gradient do not depend on how an optimizer step is split into micro-batches.

    One step is computed with all rows in one batch, then with the same rows split into micro-batches, down to one row
    each. A loss over logits is also computed a few positions at a time. Everything runs on copies, in float32, on the
    CPU, without dropout; the objects passed in do not change.

    Args:
        loss: the loss to check.
        model: a student. A small one is enough.
        train_dataset: 4 to 64 rows. Rows of different lengths and rows without labels find the most errors.
        teacher_model: the teacher, if the loss needs one.
        data_collator: as in `Trainer`.
        processing_class: as in `Trainer`.
        tolerance: largest allowed difference of the loss and of the gradient, relative to their size.
        **arguments: further `DistillationTrainingArguments`, such as `kl_positions="attended"`.

    Returns:
        The largest differences found.

    Raises:
        ValueError: if a difference exceeds the tolerance, if the number of items depends on more than the batch, or if
            the loss is 0, which would prove nothing.

    Example:
        >>> check_split_invariance(ReverseKL(), model=student, teacher_model=teacher, train_dataset=rows)
        SplitInvariance(loss=2.1e-08, gradient=6.0e-08, parts=(2, 4, 8, 16))
    """
    name = f"The loss {type(loss).__name__}"
    num_rows = len(train_dataset)
    if not 4 <= num_rows <= 64:
        raise ValueError(f"train_dataset has {num_rows} rows: give 4 to 64. They make one optimizer step.")
    options = {"train_dataset": train_dataset, "data_collator": data_collator, "processing_class": processing_class}

    def compute(num_parts: int, in_small_pieces: bool = False) -> _Step:
        try:
            return step(num_parts, in_small_pieces)
        except FloatingPointError:
            raise ValueError(
                f"{name} is NaN or infinite in {num_parts} micro-batches of {num_rows // num_parts}: return the sum "
                f"over the items, which is 0 for a micro-batch without items."
            ) from None

    def step(num_parts: int, in_small_pieces: bool) -> _Step:
        with tempfile.TemporaryDirectory() as folder:
            batches = {"per_device_train_batch_size": num_rows // num_parts, "gradient_accumulation_steps": num_parts}
            trainer = DistillationTrainer(
                _without_dropout(model),
                DistillationTrainingArguments(folder, **{**ARGUMENTS, **arguments, **batches}),
                teacher_model=None if teacher_model is None else copy.deepcopy(teacher_model).cpu().float(),
                losses={"checked": (copy.deepcopy(loss), 1.0)},
                **options,
            )
            num_classes = trainer._num_classes
            assert num_classes is not None  # it is None only with ZeRO-3
            with _small_pieces(num_classes) if in_small_pieces else nullcontext():
                return _one_step(trainer)

    whole = compute(1)
    if whole.items_after != whole.items:
        raise ValueError(
            f"{name} counts {whole.items:g} items before a forward pass and {whole.items_after:g} after it: `items` "
            f"must count them from the batch alone."
        )
    if whole.loss == 0 or not whole.gradient.any():
        raise ValueError(f"{name} or its gradient is 0 on these rows, which proves nothing: give other rows.")

    parts = tuple(part for part in range(2, num_rows + 1) if num_rows % part == 0)
    splits = {f"in {part} micro-batches of {num_rows // part}": (compute(part), part) for part in parts}
    if loss.needs.logits:
        splits[f"with {POSITIONS_PER_PIECE} positions at a time"] = compute(1, in_small_pieces=True), 1
    worst_loss = worst_gradient = 0.0
    for split, (own, part) in splits.items():
        if own.items != whole.items:
            raise ValueError(
                f"{name} counts {whole.items:g} items in one batch of {num_rows} rows, but {own.items:g} {split}: an "
                f"item must not depend on the rest of its batch."
            )
        off, gradient_off = _distance(own, whole)
        if off > tolerance or gradient_off > tolerance:
            looks_like_a_mean = part > 1 and abs(own.loss / whole.loss - part) < 0.3 * part
            hint = (
                "It seems to return a mean: return the sum over the items instead."
                if looks_like_a_mean
                else "Return the sum over the items, each computed without the others and without padding."
            )
            raise ValueError(
                f"{name} depends on how a step is split: it is {whole.loss:.6g} in one batch of {num_rows} rows, but "
                f"{own.loss:.6g} {split} (relative difference {off:.2g}, of the gradient {gradient_off:.2g}; at most "
                f"{tolerance:g} is allowed). {hint}"
            )
        worst_loss, worst_gradient = max(worst_loss, off), max(worst_gradient, gradient_off)
    return SplitInvariance(worst_loss, worst_gradient, parts)


@dataclass(frozen=True)
class _Step:
    """One optimizer step: its loss, its gradient `[parameters]`, and its items, counted before and after the step."""

    loss: float
    gradient: torch.Tensor
    items: float
    items_after: float


class _KeepGradient(TrainerCallback):
    """Keeps the gradient of all trained parameters as one vector."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.gradient = torch.cat([gradient.flatten() for gradient in gradients]).clone()


def _distance(step: _Step, whole: _Step) -> tuple[float, float]:
    """Difference of loss and of gradient from one whole batch, relative to their size."""
    gradient_off = (step.gradient - whole.gradient).norm() / whole.gradient.norm()
    return abs(step.loss - whole.loss) / abs(whole.loss), gradient_off.item()


def _one_step(trainer: DistillationTrainer) -> _Step:
    keeper = _KeepGradient([*trainer.model.parameters(), *trainer.loss_parameters.trained])
    trainer.add_callback(keeper)
    trainer.remove_callback(PrinterCallback)
    batches = list(trainer.get_train_dataloader())

    def count_items() -> float:
        return sum(trainer._count_items(trainer._score(batch)).item() for batch in batches)

    items = count_items()
    trainer.train()
    return _Step(trainer.state.log_history[0]["loss"], keeper.gradient, items, count_items())


def _without_dropout(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """A copy that stays in evaluation mode when it is trained."""
    student = copy.deepcopy(model).cpu().float().eval()
    student.train = MethodType(lambda self, mode=True: nn.Module.train(self, False), student)
    return student


@contextmanager
def _small_pieces(num_classes: int) -> Iterator[None]:
    """Inside this context, losses over logits get a few positions at a time."""
    sizes = pieces.CHUNK_ELEMENTS, pieces.BLOCK_ELEMENTS_ON_CPU
    pieces.CHUNK_ELEMENTS = pieces.BLOCK_ELEMENTS_ON_CPU = POSITIONS_PER_PIECE * num_classes
    try:
        yield
    finally:
        pieces.CHUNK_ELEMENTS, pieces.BLOCK_ELEMENTS_ON_CPU = sizes
