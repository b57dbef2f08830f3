"""One forward of a model that runs a vocabulary head on the scored positions only.

With RoBERTa's vocabulary, the logits of one position cost about as many multiplications as six layers of the encoder
(38.6 million and 42.5 million per token). Most would be unused: masked language modelling scores 15% of the positions.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from hf_distill.training.scoring.backbone import Backbone, last_hidden_state_of
from hf_distill.training.scoring.capture import Layer, LayerCapture, LayerOutput
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.scored import Scored

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ScoredOutput:
    """The outputs of a forward at the scored positions. A vocabulary head runs on them later, in pieces.

    Attributes:
        last_hidden_state: `[batch, length, width]`, for all positions; None if no loss reads it, or if no transformers
            model runs inside the model.
        head_inputs: `[scored, width]` hidden states for a vocabulary head, else `[scored, classes]` logits. For a
            stored teacher, a `TopK` if top-k targets are stored; None if no loss reads them, or without a head.
        head: computes the logits `[piece, classes]`, or a `TopK`, of a slice of `head_inputs`.
        layers: what was captured in the layers that losses read.
    """

    last_hidden_state: torch.Tensor | None
    head_inputs: Any
    head: Callable[[Any], Any]
    layers: Mapping[Layer, LayerOutput] = field(default_factory=dict)

    def logits(self, piece: slice) -> Any:
        """The logits of a slice of the scored positions, `[piece, classes]`, or a `TopK`."""
        return self.head(self.head_inputs[piece])


def scored_forward(
    wrapped: nn.Module,
    model: PreTrainedModel,
    head: Head,
    inputs: Mapping[str, torch.Tensor],
    scored: Scored,
    loss_of: Callable[[ScoredOutput], torch.Tensor] | None = None,
    whole_logits: bool = False,
    capture: LayerCapture | None = None,
) -> tuple[ScoredOutput, ModelOutput]:
    """Runs one forward of a model, with a vocabulary head on the scored positions only.

    The backbone runs on all positions. During the forward, the head sees a single position; afterwards
    `ScoredOutput.head` runs it on the scored positions, in pieces of any size. If that fails, for instance because the
    head reads other inputs too, a warning is logged and the head runs on all positions from then on.

    Args:
        wrapped: the module to call: `model`, or its wrapper such as DDP.
        model: the transformers model inside.
        head: the model's head.
        inputs: the model's inputs, without labels.
        scored: the scored positions of the batch, from `head.score`.
        loss_of: computes the loss. It is called inside the wrapped forward, because a wrapper that shards parameters
            gathers the head's parameters only there. The forward returns the loss, so the wrapper sees the backward
            pass.
        whole_logits: run the head on all positions, for callers who need logits `[batch, length, classes]`.
        capture: captures the layers that losses read; None if they read none.

    Returns:
        The scored output, and the output of the forward itself. The latter includes the loss, and logits only if the
        head ran on all positions.
    """
    if not head.runs_alone or whole_logits:
        return _forward(wrapped, model, head, inputs, scored, loss_of, capture, narrowed=False)
    started = []  # not empty once the head has run: later errors are not the head's

    def loss_of_narrowed(output: ScoredOutput) -> torch.Tensor | None:
        started.append(True)
        return None if loss_of is None else loss_of(output)

    try:
        return _forward(wrapped, model, head, inputs, scored, loss_of_narrowed, capture, narrowed=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if started:
            raise
        outputs = _forward(wrapped, model, head, inputs, scored, loss_of, capture, narrowed=False)
        head.runs_alone = False
        logger.warning(
            f"The head of {type(model).__name__} cannot run on the scored positions only ({error}). The logits of all "
            f"positions are computed instead, which takes more time and memory."
        )
        return outputs


def _forward(
    wrapped: nn.Module,
    model: PreTrainedModel,
    head: Head,
    inputs: Mapping[str, torch.Tensor],
    scored: Scored,
    loss_of: Callable[[ScoredOutput], torch.Tensor | None] | None,
    capture: LayerCapture | None,
    narrowed: bool,
) -> tuple[ScoredOutput, ModelOutput]:
    """`scored_forward` for one value of `narrowed`: whether the head runs on the scored positions only."""
    backbone = Backbone(model, head, inputs, narrowed)
    scored_outputs: list[ScoredOutput] = []

    @torch.compiler.disable  # it calls the model inside the model's forward
    def after_model(module, args, output):
        model_hook.remove()
        backbone.close()  # the model is called again to run the head
        layers = {} if capture is None else capture.take()
        hidden = backbone.last_hidden_state
        output = head.named(output)
        if narrowed:
            if hidden is None:
                raise RuntimeError("no transformers model runs inside it")
            if not head.is_proved:
                backbone.prove(hidden)
                head.is_proved = True
            scored_output = ScoredOutput(hidden, scored.select(hidden), backbone.run_head, layers)
        else:
            if not head.has_logits:
                hidden = last_hidden_state_of(output)  # the model itself is the backbone
            scored_output = ScoredOutput(hidden, head.scored_logits(output, scored), lambda logits: logits, layers)
        scored_outputs.append(scored_output)
        loss = None if loss_of is None else loss_of(scored_output)
        return output if loss is None else type(output)(**{**({} if narrowed else output), "loss": loss})

    # Prepended, so it runs before an engine that shards parameters frees them at the end of the forward.
    model_hook = model.register_forward_hook(after_model, prepend=True)
    try:
        with nullcontext() if capture is None else capture.open():
            output = wrapped(**inputs)
    finally:  # remove the hooks even if the forward failed
        model_hook.remove()
        backbone.close()
    return scored_outputs.pop(), output
