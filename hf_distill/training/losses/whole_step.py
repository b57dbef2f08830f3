"""Losses that compare all texts of an optimizer step, over all its micro-batches and processes.

A first pass without gradients computes the vectors of all texts, and each loss with its gradient with respect to them.
The training's own forward passes then only send these gradients back, one micro-batch at a time. Dropout is the same in
both passes.

Reference: Gao et al., 2021, GradCache, https://arxiv.org/abs/2101.06983
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from hf_distill.adapters import transformers_model
from hf_distill.training.losses.base import Loss, ScoredItems, Signals
from hf_distill.training.losses.gradient_norms import unchanged
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.scored import Scored


@dataclass(frozen=True)
class StepShare:
    """The share of one micro-batch in a loss over the whole step.

    Attributes:
        value: `[]`, its share in the sum of the loss.
        gradient: `[texts, width]`, the gradient of the whole sum with respect to its vectors.
    """

    value: torch.Tensor
    gradient: torch.Tensor

    def of(self, embeddings: torch.Tensor) -> torch.Tensor:
        """A tensor of shape `[]` with this value, and with this gradient with respect to `embeddings`."""
        product = (embeddings.float() * self.gradient).sum()
        return self.value + (product - product.detach())


class SteppingTrainer(Protocol):
    """What `WholeStep` needs of the trainer."""

    accelerator: Accelerator
    losses: dict[str, Loss]
    args: Any
    head: Head

    def _prepare_inputs(self, inputs: Any) -> Any: ...

    def _score(self, inputs: Mapping[str, torch.Tensor]) -> Scored: ...

    def _student_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...

    def _read_by_teacher(self, inputs: Mapping[str, torch.Tensor], scored: Scored) -> ScoredOutput | None: ...


class WholeStep:
    """Computes losses over the whole step before its first forward pass.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: SteppingTrainer):
        self.trainer = trainer
        self.batches: Sequence[Mapping[str, torch.Tensor]] | None = None
        self._shares: list[dict[str, StepShare]] = []
        self._read: list[ScoredOutput | None] = []
        self._position = -1

    @property
    def losses(self) -> dict[str, Loss]:
        """The losses over the whole step, by name."""
        return {name: loss for name, loss in self.trainer.losses.items() if loss.needs.whole_step}

    def expect(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Keeps the micro-batches of the next step. A single one needs no first pass."""
        self._shares, self._read, self._position = [], [], -1
        is_split = len(batches) > 1 or self.trainer.accelerator.num_processes > 1
        self.batches = batches if self.losses and is_split else None

    def begin_batch(self) -> None:
        """Goes on to the next micro-batch of the step."""
        self._position += 1

    @contextmanager
    def at(self, position: int) -> Iterator[None]:
        """While open, the shares are those of another micro-batch."""
        before, self._position = self._position, position
        try:
            yield
        finally:
            self._position = before

    @property
    def now(self) -> tuple[dict[str, StepShare], ScoredOutput | None]:
        """What the first pass found for the current micro-batch; nothing if the step has only one.

        Returns:
            Its shares by name of the loss, and the teacher's outputs; None if they must be read again.
        """
        shares = self._shares[self._position] if self._shares else {}
        return shares, self._read[self._position] if self._read else None

    def compute(self, model: nn.Module) -> None:
        """Computes the shares of all micro-batches. Call it before the first forward pass of the step.

        Args:
            model: the student, as it is called in training.
        """
        trainer, batches = self.trainer, self.batches or []
        self.batches = None
        student: list[torch.Tensor] = []
        teacher: list[torch.Tensor] = []
        inner = transformers_model(trainer.accelerator.unwrap_model(model, keep_torch_compile=False))
        # Hidden states of all micro-batches would take too much memory.
        only_vectors = all(loss.needs.embeddings for loss in trainer.losses.values())
        with unchanged([inner], trainer.args.device), torch.no_grad():
            for given in batches:
                batch = trainer._prepare_inputs(given)
                scored = trainer._score(batch)
                own, _ = scored_forward(model, inner, trainer.head, trainer._student_inputs(batch), scored)
                other = trainer._read_by_teacher(batch, scored)
                student.append(own.head_inputs.float())
                if other is not None:
                    teacher.append(other.logits(slice(None)).float())
                    self._read.append(replace(other, last_hidden_state=None) if only_vectors else None)
        sizes = [len(own) for own in student]
        others = self._gathered(torch.cat(teacher))[0] if teacher else None
        everything, start = self._gathered(torch.cat(student))
        everything = everything.requires_grad_()
        shares: list[dict[str, StepShare]] = [{} for _ in batches]
        for name, loss in self.losses.items():
            loss.train(model.training)
            with torch.enable_grad():
                signals = Signals(embeddings=others) if loss.reads_teacher else None
                total = loss(Signals(embeddings=everything), signals, ScoredItems())
                (gradient,) = torch.autograd.grad(total, everything)
            per_text = total.detach() / len(everything)
            own_gradients = gradient[start : start + sum(sizes)].split(sizes)
            for share, of_batch, size in zip(shares, own_gradients, sizes, strict=True):
                share[name] = StepShare(per_text * size, of_batch)
        self._shares = shares

    def _gathered(self, vectors: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The vectors of all processes, and where those of this process begin."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return vectors, 0
        counts = accelerator.gather(torch.tensor([len(vectors)], device=vectors.device)).tolist()
        padded = vectors.new_zeros(max(counts), vectors.shape[1])
        padded[: len(vectors)] = vectors
        parts = accelerator.gather(padded).split(max(counts))
        whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return whole, sum(counts[: accelerator.process_index])
