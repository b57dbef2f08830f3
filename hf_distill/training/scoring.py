"""One forward of a model, in which a vocabulary head is kept off the positions that are not scored.

With RoBERTa's vocabulary, one row of logits costs about as many multiplications as six layers of the encoder (38.6
million beside 42.5 million per token), and most rows are never looked at: masked language modelling scores 15% of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from hf_distill.training.heads import Head, Scored

CHUNK_ELEMENTS = 2**25
"""Vocabulary logits that exist at one time, in each of student and teacher: 128 MiB in fp32."""


@dataclass(frozen=True)
class ScoredOutput:
    """A forward whose head has run, or can be run, on the scored rows.

    Attributes:
        last_hidden_state: `[batch, length, width]`, of all positions.
        num_rows: how many rows are scored.
        logits: gives the logits `[rows, classes]` of a slice of the scored rows.
    """

    last_hidden_state: torch.Tensor
    num_rows: int
    logits: Callable[[slice], torch.Tensor]


def scored_forward(
    wrapped: nn.Module,
    model: PreTrainedModel,
    head: Head,
    inputs: Mapping[str, torch.Tensor],
    scored: Scored,
    whole_logits: bool = False,
    then: Callable[[ScoredOutput], None] | None = None,
) -> tuple[ScoredOutput, ModelOutput]:
    """One forward of a model, in which a vocabulary head runs on the scored positions alone.

    The backbone runs as always. What its output is narrowed to is all that the head sees: a single position during the
    forward itself; afterwards `ScoredOutput.logits` runs it on as many rows at a time as it is asked for.

    Args:
        wrapped: `model`, or what DDP and the like have made of it: the thing to call.
        model: the transformers model inside.
        head: its head.
        inputs: its inputs, without labels.
        scored: what `head.score` says of the batch.
        whole_logits: run the head on all positions all the same, for callers who want `[batch, length, classes]`.
        then: called with the output while the wrapped forward is still under way, which is where a wrapper that shards
            parameters has those of the head at hand.

    Returns:
        The scored output, and what the forward itself returned.

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
            rows = hidden[scored.positions]
            scored_output = ScoredOutput(hidden, len(rows), lambda chunk: backbone.run_head(rows[chunk]))
        else:
            rows = head.rows(output, scored)
            scored_output = ScoredOutput(hidden, len(rows), lambda chunk: rows[chunk])
        if then is not None:
            then(scored_output)
        scored_outputs.append(scored_output)

    # Ahead of what an engine that shards parameters does at the end of the forward, which is to put them away.
    model_hook = model.register_forward_hook(after_model, prepend=True)
    try:
        output = wrapped(**inputs)
    finally:  # where the forward failed, the hooks are still there
        model_hook.remove()
        backbone.close()
    return scored_outputs.pop(), output


def sum_over_chunks(
    of_rows: Callable[[slice], torch.Tensor], num_rows: int, num_classes: int, in_one: bool = False
) -> torch.Tensor:
    """Sums `of_rows` over slices of the rows, so that only a chunk of vocabulary logits exists at a time.

    Where one chunk is not enough, each is computed once more in the backward pass instead of being kept for it.

    Args:
        of_rows: gives the sum over a slice of the rows.
        num_rows: how many rows there are.
        num_classes: how many logits a row has.
        in_one: take all rows at a time, however many they are.
    """
    chunk_rows = max(1, CHUNK_ELEMENTS // num_classes)
    if in_one or num_rows <= chunk_rows:
        return of_rows(slice(None))
    chunks = [slice(start, start + chunk_rows) for start in range(0, num_rows, chunk_rows)]
    return sum(checkpoint(of_rows, chunk, use_reentrant=False) for chunk in chunks)


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
