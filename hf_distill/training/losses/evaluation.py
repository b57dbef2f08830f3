"""Evaluation: each loss is the mean over all its items, independent of the batch size."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from hf_distill.training.losses.generation import GeneratingTrainer, GenerationOptions
from hf_distill.training.losses.schedules import END
from hf_distill.training.losses.steps import means
from hf_distill.training.losses.trainer import LossTrainer, LossTrainerArguments
from hf_distill.training.scoring.groups import flattened, regrouped
from hf_distill.training.scoring.inputs import count_examples

logger = logging.get_logger(__name__)

Tensors = torch.Tensor | tuple[torch.Tensor, ...] | None


class EvaluationLosses:
    """The mean of each loss over all its items in an evaluation, independent of the batch size.

    Args:
        weights: `[losses]`, the weight of each in the total loss.
    """

    def __init__(self, weights: torch.Tensor):
        self.weights = weights
        self._sums_and_items = torch.zeros(2, len(weights), device=weights.device)
        self._rest_and_examples = torch.zeros(2, device=weights.device)
        self._runs: list[torch.Tensor] = []
        self.has_parts, self.has_total, self._is_partial = False, False, False

    def record(self, sums: torch.Tensor, items: torch.Tensor, loss: torch.Tensor) -> None:
        """Adds the losses that `compute_loss` computed for a batch.

        Args:
            sums: `[losses]`, each summed over its items in the batch.
            items: `[losses]`, how many items each has in the batch.
            loss: `[]`, the loss that `compute_loss` returned.
        """
        self._sums_and_items += torch.stack([sums, items])
        self._runs.append(loss.detach())
        self.has_parts = True

    def end_batch(self, loss: torch.Tensor, num_examples: int) -> None:
        """Adds what an override of `compute_loss` added to the recorded loss. That part is averaged over examples.

        Args:
            loss: `[]`, the loss that the override returned.
            num_examples: how many examples the batch has.
        """
        if self._runs:
            rest = (loss.detach() - torch.stack(self._runs).mean()) * num_examples
            self._rest_and_examples += torch.stack([rest, rest.new_tensor(float(num_examples))])
            self.has_total = not self._is_partial
        else:
            self._is_partial, self.has_total = True, False
        self._runs = []

    def means(self, reduce) -> tuple[torch.Tensor, list[float]]:
        """The total loss, and the mean of each loss.

        Args:
            reduce: sums a tensor over all processes.
        """
        sums, items = reduce(self._sums_and_items)
        rest, examples = reduce(self._rest_and_examples)
        losses = means(sums, items)
        return (self.weights @ losses + rest / examples.clamp(min=1)).item(), losses.tolist()


class EvaluationArguments(LossTrainerArguments, GenerationOptions, Protocol):
    """The training arguments that `EvaluatingTrainer` reads."""


class EvaluatingTrainer(GeneratingTrainer, LossTrainer):
    """A `Trainer` that evaluates through `compute_loss` and reports each loss next to the total.

    Scheduled weights and a scheduled temperature have their values of the end of the training.
    """

    args: EvaluationArguments
    gather_function: Callable[..., Any]
    _evaluation: EvaluationLosses | None = None
    """The losses of the running evaluation."""
    _not_for_student: set[str]
    """The entries of a batch that are not passed to the student."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs,
    ) -> tuple[torch.Tensor | None, Tensors, Tensors]:
        """As in `Trainer`, but of the outputs returns only the logits, so no hidden states are gathered.

        With `predict_with_generate`, the generated tokens are returned instead of the logits.
        """
        inputs = self._prepare_inputs(inputs)
        names = self.label_names
        labels = _one_or_all(tuple(inputs[name] for name in names) if names and has_all(names, inputs) else None)
        predictions: Tensors = None
        if self.args.predict_with_generate and not prediction_loss_only:
            student_inputs = self._student_inputs(inputs)
            predictions, labels = self._generate(student_inputs, inputs.get("labels"), ignore_keys, **gen_kwargs)
        logits_wanted = predictions is None and not prediction_loss_only

        labels_needed = self.needs_labels or (self.head.per_token and self.args.kl_positions == "labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            # Predictions and accuracy need no teacher, so rows without stored targets are fine here.
            has_targets = self.teacher is None or self.teacher.can_read(inputs)
            if has_targets and (self._has_labels(inputs) or not labels_needed):
                num_fresh = self._num_fresh(inputs)
                loss = self.compute_loss(model, inputs, return_outputs=logits_wanted)
                loss, outputs = loss if logits_wanted else (loss, None)
                loss = loss.detach()
                if self._evaluation is not None:
                    self._evaluation.end_batch(loss, count_examples(inputs) if num_fresh is None else num_fresh)
            else:
                pairs = flattened(inputs) if self.head.reads_groups_in(inputs) else inputs
                loss, outputs = None, model(**self._student_inputs(pairs)) if logits_wanted else None
        if prediction_loss_only:
            return loss, None, None
        if logits_wanted:
            predictions = self.head.predictions(outputs)
            if labels is None and self.head.has_embeddings:
                # Without any labels, Trainer does not call compute_metrics.
                labels = torch.zeros(count_examples(inputs), device=self.args.device)
            if self.head.reads_groups_in(inputs) and isinstance(predictions, torch.Tensor):
                predictions = regrouped(predictions, inputs)
        return loss, predictions, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in `Trainer`, but each loss is the mean over all its items, independent of the batch size."""
        if not self.is_in_train:
            self._renew_losses()
        # Evaluations may be nested, for instance when compute_metrics calls predict.
        outer, self._evaluation = self._evaluation, EvaluationLosses(self._weights_at(END))
        if self.gather_function == self.accelerator.gather:  # set by `Seq2SeqTrainer`, and counts repeated rows
            self.gather_function = self.accelerator.gather_for_metrics
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            losses = self._evaluation
        finally:
            self._evaluation = outer
        total = f"{metric_key_prefix}_loss"
        if losses.has_parts:
            loss, parts = losses.means(partial(self.accelerator.reduce, reduction="sum"))
            if losses.has_total:
                output.metrics[total] = loss
            output.metrics.update(
                {f"{metric_key_prefix}_loss_{name}": part for name, part in zip(self.losses, parts, strict=True)}
            )
        elif total in output.metrics and type(self).prediction_step is not EvaluatingTrainer.prediction_step:
            logger.warning_once(
                f"{total} is the loss that {type(self).__name__}.prediction_step returns, not the training loss: call "
                f"self.compute_loss there."
            )
        return output

    def _student_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in inputs.items() if name not in self._not_for_student}

    def _has_labels(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        return has_all(self.head.label_names, inputs)

    def _num_fresh(self, inputs: Mapping[str, torch.Tensor]) -> int | None:
        """How many examples of this evaluation batch are not repeats; None if there are no repeats.

        Accelerate fills up the last batches to the same size on all processes, with rows from the beginning.
        """
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        dataloader = self.callback_handler.eval_dataloader
        if processes == 1 or state.active_dataloader is not dataloader:
            return None  # Accelerate fills up only data loaders that it has prepared
        if not state.end_of_dataloader or state.remainder <= 0:
            return None
        rows = dataloader.total_batch_size // processes
        fresh_rows = min(max(state.remainder - self.accelerator.process_index * rows, 0), rows)
        return fresh_rows * count_examples(inputs) // rows  # a collator may make several examples from a row


def has_all(names: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether a batch has a value for each of the names."""
    return all(inputs.get(name) is not None for name in names)


def _one_or_all(labels: tuple[torch.Tensor, ...] | None) -> Tensors:
    return labels[0] if labels is not None and len(labels) == 1 else labels
