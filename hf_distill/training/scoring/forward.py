"""One forward of a model, in which a vocabulary head is kept off the positions that are not scored.

With RoBERTa's vocabulary, the logits of one position cost about as many multiplications as six layers of the encoder
(38.6 million beside 42.5 million per token), and most are never looked at: masked language modelling scores 15% of the
positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from hf_distill.training.scoring.backbone import Backbone
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.scored import Scored

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ScoredOutput:
    """A forward whose head has run, or can be run, on the scored positions.

    Attributes:
        last_hidden_state: `[batch, length, width]`, of all positions; None where no loss reads it, and where no
            transformers model was seen to run inside the model.
        head_inputs: `[scored, width]` hidden states of a vocabulary head, else `[scored, classes]` logits; of a stored
            teacher a `TopK`, where that is what is stored; None where no loss reads it.
        head: gives the logits `[piece, classes]` of some of the head inputs, or a `TopK`.
    """

    last_hidden_state: torch.Tensor | None
    head_inputs: Any
    head: Callable[[Any], Any]

    def logits(self, piece: slice) -> Any:
        """`[piece, classes]`, or a `TopK`."""
        return self.head(self.head_inputs[piece])


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
    forward itself; afterwards `ScoredOutput.head` runs it on as many positions at a time as it is asked for. If that
    fails, as for a head that reads something else too, it gets all positions from then on, with a warning.

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
    """
    if not head.runs_alone or whole_logits:
        return _forward(wrapped, model, head, inputs, scored, loss_of, narrowed=False)
    started = []  # once the head has run, an error is not its own

    def loss_of_narrowed(output: ScoredOutput) -> torch.Tensor | None:
        started.append(True)
        return None if loss_of is None else loss_of(output)

    try:
        return _forward(wrapped, model, head, inputs, scored, loss_of_narrowed, narrowed=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if started:
            raise
        outputs = _forward(wrapped, model, head, inputs, scored, loss_of, narrowed=False)
        head.runs_alone = False
        logger.warning(
            f"The head of {type(model).__name__} cannot be run on the scored positions alone ({error}): the logits of "
            f"all positions are computed, which takes more time and memory."
        )
        return outputs


def _forward(
    wrapped: nn.Module,
    model: PreTrainedModel,
    head: Head,
    inputs: Mapping[str, torch.Tensor],
    scored: Scored,
    loss_of: Callable[[ScoredOutput], torch.Tensor | None] | None,
    narrowed: bool,
) -> tuple[ScoredOutput, ModelOutput]:
    """As `scored_forward`."""
    backbone = Backbone(model, head, inputs, narrowed)
    scored_outputs: list[ScoredOutput] = []

    @torch.compiler.disable  # it calls the model from within the model
    def after_model(module, args, output):
        model_hook.remove()
        backbone.close()  # it is called again when the head is run on its own
        hidden = backbone.last_hidden_state
        output = head.named(output)
        if narrowed:
            if hidden is None:
                raise RuntimeError("no transformers model runs inside of it")
            if not head.is_proved:
                backbone.prove(hidden)
                head.is_proved = True
            scored_output = ScoredOutput(hidden, scored.select(hidden), backbone.run_head)
        else:
            scored_output = ScoredOutput(hidden, head.scored_logits(output, scored), lambda logits: logits)
        scored_outputs.append(scored_output)
        loss = None if loss_of is None else loss_of(scored_output)
        return output if loss is None else type(output)(**{**({} if narrowed else output), "loss": loss})

    # Ahead of what an engine that shards parameters does at the end of the forward, which is to put them away.
    model_hook = model.register_forward_hook(after_model, prepend=True)
    try:
        output = wrapped(**inputs)
    finally:  # where the forward failed, the hooks are still there
        model_hook.remove()
        backbone.close()
    return scored_outputs.pop(), output
