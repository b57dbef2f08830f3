"""One forward of a model, in which a vocabulary head is kept off the positions that are not scored.

With RoBERTa's vocabulary, the logits of one position cost about as many multiplications as six layers of the encoder
(38.6 million beside 42.5 million per token), and most are never looked at: masked language modelling scores 15% of the
positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from hf_distill.training.scoring.heads import Head, Scored, is_base
from hf_distill.training.scoring.pieces import sum_over_pieces
from hf_distill.training.scoring.top_k import TopK

logger = logging.get_logger(__name__)

CHUNK_ELEMENTS = 2**24
"""Vocabulary logits that exist at one time, in each of student and teacher: 64 MiB in fp32."""

BLOCK_ELEMENTS_ON_CPU = 2**20
"""Logits that losses are computed of at one time on a CPU: as many as its cache holds."""


@dataclass(frozen=True)
class ScoredOutput:
    """A forward whose head has run, or can be run, on the scored positions.

    Attributes:
        last_hidden_state: `[batch, length, width]`, of all positions; None where no loss reads it, and where no
            transformers model was seen to run inside the model.
        head_inputs: `[scored, width]` hidden states of a vocabulary head, else `[scored, classes]` logits, or what is
            stored of them; None where no loss reads it.
        head: gives the logits `[piece, classes]` of some of the head inputs.
    """

    last_hidden_state: torch.Tensor | None
    head_inputs: torch.Tensor | TopK | None
    head: Callable[[torch.Tensor | TopK], torch.Tensor | TopK]

    def logits(self, piece: slice) -> torch.Tensor | TopK:
        """`[piece, classes]`, or the likeliest of them."""
        return self.head(self.head_inputs[piece])

    def states(self, of: str) -> torch.Tensor:
        """The last hidden state, where a loss reads it.

        Args:
            of: whose, for the error.

        Raises:
            ValueError: if it is not known.
        """
        if self.last_hidden_state is None:
            raise ValueError(
                f"The {of} has no transformers model inside (a PreTrainedModel that its forward calls), so its last "
                f"hidden states are not known: set alpha_cos=0."
            )
        return self.last_hidden_state


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
    backbone = _Backbone(model, head, inputs, narrowed)
    scored_outputs = []

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


def sum_losses_of_logits(
    losses: Sequence[Callable],
    weights: torch.Tensor,
    student: ScoredOutput,
    teacher: ScoredOutput | None,
    labels: torch.Tensor | None,
    num_classes: int | None,
    loss_scale: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses over the scored positions: the heads run on chunks of them, and the losses on blocks of a chunk.

    Args:
        losses: of the student's logits, the teacher's, and labels.
        weights: `[losses]`
        student: has `[scored, classes]` logits, as has the teacher.
        teacher: may be None if no loss reads its logits.
        labels: `[scored]`, or as the losses want them.
        num_classes: how many logits a position has, so that a chunk is of as many positions as there is room for; None
            for one chunk of all positions.
        loss_scale: what gradients are kept multiplied by.

    Returns:
        The weighted sum, to be differentiated, and `[losses]`, the sums one by one.
    """

    def of_chunk(student_inputs: torch.Tensor, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
        student_logits = student.head(student_inputs)
        teacher_logits = None if teacher is None else teacher.logits(chunk)
        chunk_labels = None if labels is None else labels[chunk]

        def of_block(logits: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
            others = [None if values is None else values[block] for values in (teacher_logits, chunk_labels)]
            sums = torch.stack([loss(logits, *others) for loss in losses])
            return sums @ weights, sums.detach()

        block_elements = BLOCK_ELEMENTS_ON_CPU if student_logits.device.type == "cpu" else CHUNK_ELEMENTS
        return sum_over_pieces(of_block, student_logits, max(1, block_elements // student_logits.shape[1]), loss_scale)

    chunk_size = len(student.head_inputs) if num_classes is None else CHUNK_ELEMENTS // num_classes
    return sum_over_pieces(of_chunk, student.head_inputs, max(1, chunk_size), loss_scale)


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

    It is the outermost transformers model that runs inside of it, other than one with a vocabulary head of its own and
    the encoder of an encoder-decoder: `BertModel` in `BertForMaskedLM`, the decoder of T5, `OPTDecoder` in
    `OPTForCausalLM`, which does not call the `OPTModel` around it, and the `BertModel` inside of the `BertLMHeadModel`
    that is the decoder of an `EncoderDecoderModel`.
    """

    def __init__(self, model: PreTrainedModel, head: Head, inputs: Mapping[str, torch.Tensor], narrowed: bool):
        self.model, self.head, self.inputs, self.narrowed = model, head, inputs, narrowed
        self.output, self.ran, self.running, self.encoder_output = None, None, None, None
        self.encoder = model.get_encoder() if model.config.is_encoder_decoder else None
        self.hooks = []
        if self.encoder is not None and self.encoder is not model:
            self.hooks.append(self.encoder.register_forward_hook(self._after_encoder))
        for part in self._parts():
            self.hooks.append(part.register_forward_pre_hook(self._before))
            self.hooks.append(part.register_forward_hook(self._after))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @property
    def last_hidden_state(self) -> torch.Tensor | None:
        """`[batch, length, width]`, of all positions; feature maps `[batch, width, height, width]` are flattened."""
        hidden = None if self.output is None else _states_of(self.output)
        return hidden.flatten(2).transpose(1, 2) if hidden is not None and hidden.ndim == 4 else hidden

    def run_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of hidden states `[piece, width]`: its own forward, with the backbone left out."""
        with ExitStack() as stack:
            stack.enter_context(_forward_returns(self.ran, _replaced(self.output, hidden.unsqueeze(0))))
            if self.encoder_output is not None:
                stack.enter_context(_forward_returns(self.encoder, self.encoder_output))
            return self.head.named(self.model.forward(**self.inputs)).logits.squeeze(0)

    @torch.no_grad()
    def prove(self, hidden: torch.Tensor) -> None:
        """Checks that the head makes of two positions together what it makes of each.

        Raises:
            RuntimeError: if not, as where it is recurrent.
        """
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            positions = hidden.flatten(0, 1)[:2]
            together, apart = self.run_head(positions), torch.cat([self.run_head(one) for one in positions.split(1)])
        finally:
            for module, mode in modes.items():
                module.training = mode
        if (together - apart).abs().max() > 0.02 * apart.abs().max():  # more than bfloat16 rounds
            raise RuntimeError("what it makes of a position depends on others")

    def _parts(self) -> list[nn.Module]:
        """What may be the backbone, if it is not inside of another that runs."""
        encoder = set() if self.encoder in (None, self.model) else set(self.encoder.modules())
        models = {module for module in self.model.modules() if isinstance(module, PreTrainedModel)}
        with_heads = {module for module in models if module.get_output_embeddings() is not None and not is_base(module)}
        parts = {*models, self.model.base_model} - with_heads - {self.model}
        return list(parts - encoder or parts)

    def _before(self, module, args) -> None:
        if self.running is not None:
            return
        if self.narrowed and self.ran is not None:
            raise RuntimeError(f"after the {type(self.ran).__name__} it calls a {type(module).__name__}")
        self.running = module

    def _after(self, module, args, output):
        if self.running is not module:
            return output
        self.running, self.ran, self.output = None, module, output
        # One position rather than none, since quantised layers do not take an empty batch.
        return _replaced(output, _states_of(output)[:1, :1]) if self.narrowed else output

    def _after_encoder(self, module, args, output) -> None:
        self.encoder_output = _replaced(output, _states_of(output)[:1, :1].detach())


def _states_of(output: ModelOutput | Mapping | tuple | torch.Tensor) -> torch.Tensor:
    """The last hidden states: by name, or what comes first."""
    if isinstance(output, torch.Tensor):
        return output
    return output[_key(output)] if isinstance(output, Mapping) else output[0]


def _replaced(
    output: ModelOutput | Mapping | tuple | torch.Tensor, hidden: torch.Tensor
) -> ModelOutput | Mapping | tuple | torch.Tensor:
    """An output of the same kind that has nothing but these hidden states."""
    if isinstance(output, torch.Tensor):
        return hidden
    return type(output)(**{_key(output): hidden}) if isinstance(output, Mapping) else (hidden,)


def _key(output: Mapping) -> str:
    return "last_hidden_state" if "last_hidden_state" in output else next(iter(output))


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
