"""One forward of a model, in which a vocabulary head is kept off the positions that are not scored.

With RoBERTa's vocabulary, one row of logits costs about as many multiplications as six layers of the encoder (38.6
million beside 42.5 million per token), and most rows are never looked at: masked language modelling scores 15% of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from hf_distill.training.heads import Head, Scored
from hf_distill.training.losses.logits import TopK
from hf_distill.training.pieces import sum_over_pieces

CHUNK_ELEMENTS = 2**24
"""Vocabulary logits that exist at one time, in each of student and teacher: 64 MiB in fp32."""

BLOCK_ELEMENTS_ON_CPU = 2**20
"""Logits that losses are computed of at one time on a CPU: as many as its cache holds."""


@dataclass(frozen=True)
class ScoredOutput:
    """A forward whose head has run, or can be run, on the scored rows.

    Attributes:
        last_hidden_state: `[batch, length, width]`, of all positions; None where no loss reads it.
        rows: what is scored: `[rows, width]` hidden states of a vocabulary head, else `[rows, classes]` logits, or what
            is stored of them; None where no loss reads it.
        head: gives the logits `[rows, classes]` of some of the rows.
    """

    last_hidden_state: torch.Tensor | None
    rows: torch.Tensor | TopK | None
    head: Callable[[torch.Tensor | TopK], torch.Tensor | TopK]

    def logits(self, rows: slice) -> torch.Tensor | TopK:
        """`[rows, classes]`, or the likeliest of them."""
        return self.head(self.rows[rows])


def scored_forward(
    wrapped: nn.Module,
    model: PreTrainedModel,
    head: Head,
    inputs: Mapping[str, torch.Tensor],
    scored: Scored,
    loss_of: Callable[[ScoredOutput], torch.Tensor] | None = None,
    whole_logits: bool = False,
) -> tuple[ScoredOutput, ModelOutput]:
    """One forward of a model, in which a vocabulary head runs on the scored positions alone.

    The backbone runs as always. What its output is narrowed to is all that the head sees: a single position during the
    forward itself; afterwards `ScoredOutput.head` runs it on as many rows at a time as it is asked for.

    Args:
        wrapped: `model`, or what DDP and the like have made of it: the thing to call.
        model: the transformers model inside.
        head: its head.
        inputs: its inputs, without labels.
        scored: what `head.score` says of the batch.
        loss_of: gives the loss. It is called while the wrapped forward is still under way, which is where a wrapper
            that shards parameters has those of the head at hand. The loss is then what the forward returns, and where
            a wrapper learns of the backward pass.
        whole_logits: run the head on all positions all the same, for callers who want `[batch, length, classes]`.

    Returns:
        The scored output; and what the forward itself returned, with the loss in it, without logits that are narrowed.

    Raises:
        ValueError: if the model does not tell its head from the rest.
    """
    narrowed = head.over_vocabulary and not whole_logits
    backbone = _Backbone(model, narrowed)
    scored_outputs = []

    @torch.compiler.disable  # it calls the model from within the model
    def after_model(module, args, output):
        model_hook.remove()
        backbone.close()  # it is called again when the head is run on its own
        hidden = backbone.last_hidden_state
        if hidden is None:
            raise ValueError(
                f"{type(model).__name__} does not say which of its modules its head reads from: base_model, "
                f"get_decoder() or get_encoder() should be the one that its forward calls."
            )
        if narrowed:
            scored_output = ScoredOutput(hidden, scored.select(hidden), backbone.run_head)
        else:
            scored_output = ScoredOutput(hidden, head.rows(output, scored), lambda rows: rows)
        scored_outputs.append(scored_output)
        if loss_of is not None:
            loss = loss_of(scored_output)
            output = type(output)(**{**({} if narrowed else output), "loss": loss})
        return output

    # Ahead of what an engine that shards parameters does at the end of the forward, which is to put them away.
    model_hook = model.register_forward_hook(after_model, prepend=True)
    try:
        output = wrapped(**inputs)
    finally:  # where the forward failed, the hooks are still there
        model_hook.remove()
        backbone.close()
    return scored_outputs.pop(), output


def sum_losses_of_logits(
    losses: Sequence[Callable],
    weights: torch.Tensor,
    student: ScoredOutput,
    teacher: ScoredOutput | None,
    labels: torch.Tensor | None,
    num_classes: int | None,
    loss_scale: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses over the scored rows: the heads of both models run on chunks of them, and the losses on blocks of a chunk.

    Args:
        losses: of the student's logits, the teacher's, and labels.
        weights: `[losses]`
        student: has `[rows, classes]` logits, as has the teacher.
        teacher: may be None if no loss reads its logits.
        labels: `[rows]`, or as the losses want them.
        num_classes: how many logits a row has, so that a chunk is of as many rows as there is room for; None for one
            chunk of all rows.
        loss_scale: what gradients are kept multiplied by.

    Returns:
        The weighted sum, to be differentiated, and `[losses]`, the sums one by one.
    """

    def of_chunk(student_rows: torch.Tensor, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
        student_logits = student.head(student_rows)
        teacher_logits = None if teacher is None else teacher.logits(chunk)
        chunk_labels = None if labels is None else labels[chunk]

        def of_block(logits: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
            others = [None if values is None else values[block] for values in (teacher_logits, chunk_labels)]
            sums = torch.stack([loss(logits, *others) for loss in losses])
            return sums @ weights, sums.detach()

        block_elements = BLOCK_ELEMENTS_ON_CPU if student_logits.device.type == "cpu" else CHUNK_ELEMENTS
        return sum_over_pieces(of_block, student_logits, max(1, block_elements // student_logits.shape[1]), loss_scale)

    chunk_rows = len(student.rows) if num_classes is None else CHUNK_ELEMENTS // num_classes
    return sum_over_pieces(of_chunk, student.rows, max(1, chunk_rows), loss_scale)


def state_weights(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], scored: Scored, num_states: int
) -> torch.Tensor:
    """`[batch, num_states]`: how much of an item of the cosine loss each of the last hidden states is.

    Raises:
        ValueError: if the model's states are neither those of the tokens nor those of an image or a recording.
    """
    attended = scored.attended
    if attended.shape[1] == num_states:
        return attended.float()
    if attended.shape[1] != 1:
        raise ValueError(
            f"{type(model).__name__} has {num_states} hidden states for {attended.shape[1]} tokens, so it is not known "
            f"which of them are padding: set alpha_cos=0."
        )
    attended = attended.expand(-1, num_states)
    if "attention_mask" in inputs and hasattr(model, "_get_feature_vector_attention_mask"):  # speech models
        attended = attended & model._get_feature_vector_attention_mask(num_states, inputs["attention_mask"]).bool()
    return attended / attended.sum(1, keepdim=True).clamp(min=1)


class _Backbone:
    """The part of a model that its head reads from: watched during one forward, left out when the head is run again.

    That is `model.base_model`, unless the model calls the decoder or the encoder inside of it, or has nothing else, as
    OPT and T5 do.
    """

    def __init__(self, model: PreTrainedModel, narrowed: bool):
        self.model, self.narrowed = model, narrowed
        self.output, self.ran, self.base_model_runs = None, None, False
        base_model = None if model.base_model is model else model.base_model
        parts = [part for part in (model.get_decoder(), model.get_encoder()) if part not in (model, base_model)]
        self.hooks = [part.register_forward_hook(self._after) for part in parts[:1]]
        if base_model is not None:
            self.hooks.append(base_model.register_forward_pre_hook(self._before_base_model))
            self.hooks.append(base_model.register_forward_hook(self._after_base_model))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @property
    def last_hidden_state(self) -> torch.Tensor | None:
        """`[batch, length, width]`, of all positions; feature maps `[batch, width, height, width]` are flattened."""
        hidden = None if self.output is None else self.output[0]
        return hidden.flatten(2).transpose(1, 2) if hidden is not None and hidden.ndim == 4 else hidden

    def run_head(self, rows: torch.Tensor) -> torch.Tensor:
        """What the model makes of hidden states `[rows, width]`: its own forward, with the backbone left out."""
        rows = rows.unsqueeze(0)
        with ExitStack() as stack:
            stack.enter_context(_forward_returns(self.ran, type(self.output)(last_hidden_state=rows)))
            if self.model.config.is_encoder_decoder and self.ran is self.model.get_decoder():
                encoder = self.model.get_encoder()
                stack.enter_context(_forward_returns(encoder, BaseModelOutput(last_hidden_state=rows)))
            return self.model.forward().logits.squeeze(0)

    def _before_base_model(self, module, args) -> None:
        self.base_model_runs = True

    def _after_base_model(self, module, args, output):
        self.base_model_runs = False
        return self._after(module, args, output)

    def _after(self, module, args, output):
        if self.base_model_runs:
            return output
        self.ran, self.output = module, output
        # One position rather than none, since quantised layers do not take an empty batch.
        return type(output)(last_hidden_state=output[0][:1, :1]) if self.narrowed else output


@contextmanager
def _forward_returns(module: nn.Module, output: ModelOutput) -> Iterator[None]:
    """While open, `module` computes nothing and returns `output`."""
    own_forward = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own_forward is None:
            del module.forward
        else:
            module.forward = own_forward
