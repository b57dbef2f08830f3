"""Which rows of logits are scored, and how the head is kept off all others.

A row is what the head gives one distribution for: a whole sequence in sequence classification, a token in language
modelling. With RoBERTa's vocabulary, one row costs about as many multiplications as six layers of the encoder (38.6
million beside 42.5 million per token), and most rows are never looked at: masked language modelling scores 15% of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

IGNORE_INDEX = -100
"""The label of a row that has none."""

CHUNK_ELEMENTS = 2**25
"""Vocabulary logits that exist at one time, in each of student and teacher: 128 MiB in fp32."""


@dataclass(frozen=True)
class Head:
    """A kind of head: what one row of its logits stands for."""

    name: str
    auto_class: type
    per_token: bool


# A head that is missing here is one row here, and one in the parametrised tests.
HEADS = (
    Head("ForSequenceClassification", AutoModelForSequenceClassification, per_token=False),
    Head("ForMaskedLM", AutoModelForMaskedLM, per_token=True),
)


def find_head(model: PreTrainedModel) -> Head:
    """The head of `model`, by its class's name or that of a class it derives from.

    Raises:
        ValueError: if the head is of a kind that cannot be distilled.
    """
    for cls in type(model).__mro__:
        for head in HEADS:
            if cls.__name__.endswith(head.name):
                return head
    raise ValueError(
        f"{type(model).__name__} has no head that can be distilled: use a model whose class name ends in "
        f"{' or '.join(head.name for head in HEADS)}."
    )


@dataclass(frozen=True)
class Scored:
    """What is scored in one batch. The head's rows are `[batch]` or `[batch, length]`.

    Attributes:
        attended: `[batch, length]`, True where there is no padding: the items of the cosine loss.
        positions: `[batch]` or `[batch, length]`, True where the head runs: the items of the KL loss.
        labelled: like `positions`, True where the head runs and there is a label: the items of the task loss.
        labels: like `positions`, class indices or -100; None if the batch has no labels.
    """

    attended: torch.Tensor
    positions: torch.Tensor
    labelled: torch.Tensor
    labels: torch.Tensor | None

    @property
    def row_labels(self) -> torch.Tensor | None:
        """`[rows]`: the labels of the rows that the head gives, in their order."""
        return self.labels if self.labels is None or self.positions.ndim == 1 else self.labels[self.positions]


def score(
    inputs: Mapping[str, torch.Tensor], head: Head, kl_positions: str = "labels", num_sequences: int | None = None
) -> Scored:
    """Reads from a batch what is scored in it.

    Args:
        inputs: a batch as the collator made it.
        head: the kind of head that student and teacher have.
        kl_positions: for a head per token, whether it runs where there is a label or on all attended positions.
        num_sequences: score only so many sequences; by default all.

    Raises:
        ValueError: if the positions are to be taken from labels and there are none.
    """
    attention_mask, labels = inputs.get("attention_mask"), inputs.get("labels")
    attended = torch.ones_like(inputs["input_ids"]) if attention_mask is None else attention_mask
    attended = attended.bool()
    if num_sequences is not None:
        attended = attended & (torch.arange(len(attended), device=attended.device) < num_sequences).unsqueeze(1)

    if not head.per_token:
        positions = attended.new_ones(len(attended[:num_sequences]))
        labels = None if labels is None else labels.reshape(-1)[:num_sequences]
    elif kl_positions == "attended":
        positions = attended
    elif labels is None:
        raise ValueError(
            f"The batch has no labels, only {', '.join(inputs)}, so no position would be scored: use a collator that "
            f"makes labels, such as DataCollatorForLanguageModeling, or set kl_positions='attended' and alpha_task=0."
        )
    else:
        positions = labels.ne(IGNORE_INDEX) & attended
    labelled = torch.zeros_like(positions) if labels is None else labels.ne(IGNORE_INDEX) & positions
    return Scored(attended, positions, labelled, labels)


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
    inputs: Mapping[str, torch.Tensor],
    positions: torch.Tensor,
    whole_logits: bool = False,
    then: Callable[[ScoredOutput], None] | None = None,
) -> tuple[ScoredOutput, torch.Tensor]:
    """One forward of a model, in which a vocabulary head runs on the scored positions alone.

    The backbone runs as always. What its output is narrowed to is all that the head sees: no position at all during the
    forward itself; afterwards `ScoredOutput.logits` runs it on as many rows at a time as it is asked for.

    Args:
        wrapped: `model`, or what DDP and the like have made of it: the thing to call.
        model: the transformers model inside.
        inputs: its inputs, without labels.
        positions: `[batch, length]` for a head with a row per token; for one with a row per sequence `[sequences]`, of
            which only the length matters.
        whole_logits: run the head on all positions all the same, for callers who want `[batch, length, classes]`.
        then: called with the output while the wrapped forward is still under way, which is where a wrapper that shards
            parameters has those of the head at hand.

    Returns:
        The scored output, and the logits that the forward itself returned.
    """
    per_token = positions.ndim == 2
    narrowed = per_token and not whole_logits
    backbone_outputs, scored_outputs = [], []

    def after_backbone(module, args, output):
        backbone_hook.remove()  # it is called again when the head is run on its own
        backbone_outputs.append(output)
        return type(output)(last_hidden_state=output[0][:, :0]) if narrowed else output

    @torch.compiler.disable  # it calls the model from within the model
    def after_model(module, args, output):
        model_hook.remove()
        backbone_output = backbone_outputs.pop()
        hidden = backbone_output[0]
        if narrowed:
            rows = hidden[positions]
            run_head = partial(_run_head, model, type(backbone_output))
            scored = ScoredOutput(hidden, len(rows), lambda chunk: run_head(rows[chunk]))
        else:
            rows = output.logits[positions] if per_token else output.logits[: len(positions)]
            scored = ScoredOutput(hidden, len(rows), lambda chunk: rows[chunk])
        if then is not None:
            then(scored)
        scored_outputs.append(scored)

    backbone_hook = model.base_model.register_forward_hook(after_backbone)
    model_hook = model.register_forward_hook(after_model)
    try:
        logits = wrapped(**inputs).logits
    finally:  # where the forward failed, they are still there
        backbone_hook.remove()
        model_hook.remove()
    return scored_outputs.pop(), logits


def sum_over_chunks(of_rows: Callable[[slice], torch.Tensor], num_rows: int, num_classes: int) -> torch.Tensor:
    """Sums `of_rows` over slices of the rows, so that only a chunk of vocabulary logits exists at a time.

    Where one chunk is not enough, each is computed once more in the backward pass instead of being kept for it.
    """
    chunk_rows = max(1, CHUNK_ELEMENTS // num_classes)
    if num_rows <= chunk_rows:
        return of_rows(slice(None))
    chunks = [slice(start, start + chunk_rows) for start in range(0, num_rows, chunk_rows)]
    return sum(checkpoint(of_rows, chunk, use_reentrant=False) for chunk in chunks)


def _run_head(model: PreTrainedModel, output_type: type[ModelOutput], rows: torch.Tensor) -> torch.Tensor:
    """What `model` makes of hidden states `[rows, width]`: its own forward, with the backbone left out."""
    with _forward_returns(model.base_model, output_type(last_hidden_state=rows.unsqueeze(0))):
        return model.forward().logits.squeeze(0)


@contextmanager
def _forward_returns(module: nn.Module, output) -> Iterator[None]:
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
