"""The backbone: the part of a model whose hidden states the head reads."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_distill.training.scoring.aligned import aligned
from hf_distill.training.scoring.find_head import is_base
from hf_distill.training.scoring.heads import Head


class Backbone:
    """The part of a model whose hidden states the head reads. One forward captures it; running the head skips it.

    The backbone is the outermost transformers model that runs inside the model. Models with their own vocabulary head
    and the encoder of an encoder-decoder do not count. Examples: `BertModel` in `BertForMaskedLM`; the decoder of T5;
    `OPTDecoder` in `OPTForCausalLM`, which does not call the surrounding `OPTModel`; and, for an `EncoderDecoderModel`
    whose decoder is a `BertLMHeadModel`, the `BertModel` inside that decoder.
    """

    def __init__(self, model: PreTrainedModel, head: Head, inputs: Mapping[str, torch.Tensor], narrowed: bool):
        self.model, self.head, self.inputs, self.narrowed = model, head, inputs, narrowed
        self.output: Any = None
        self.encoder_output: Any = None
        self.ran: nn.Module | None = None
        self.running: nn.Module | None = None
        self.encoder: Any = model.get_encoder() if model.config.is_encoder_decoder else None
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
        """Hidden states of all positions, `[batch, length, width]`. Feature maps are flattened."""
        return None if self.output is None else last_hidden_state_of(self.output)

    def run_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits for hidden states `[piece, width]`, from the model's own forward without the backbone."""
        assert self.ran is not None
        with ExitStack() as stack:
            stack.enter_context(_forward_returns(self.ran, _replaced(self.output, hidden.unsqueeze(0))))
            if self.encoder_output is not None:
                stack.enter_context(_forward_returns(self.encoder, self.encoder_output))
            stack.enter_context(aligned(self.model.get_output_embeddings()))
            return self.head.named(self.model.forward(**self.inputs)).logits.squeeze(0)

    @torch.no_grad()
    def prove(self, hidden: torch.Tensor) -> None:
        """Checks that the head treats positions independently: two positions together give the same logits as apart.

        Raises:
            RuntimeError: if they do not, for instance in a recurrent head.
        """
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            positions = hidden.flatten(0, 1)[:2]
            together, apart = self.run_head(positions), torch.cat([self.run_head(one) for one in positions.split(1)])
        finally:
            for module, mode in modes.items():
                module.training = mode
        if (together - apart).abs().max() > 0.02 * apart.abs().max():  # more than the rounding of bfloat16
            raise RuntimeError("its logits for a position depend on other positions")

    def _parts(self) -> list[nn.Module]:
        """The candidates for the backbone. The outermost candidate that runs is the backbone."""
        encoder = set() if self.encoder in (None, self.model) else set(self.encoder.modules())
        models = {module for module in self.model.modules() if isinstance(module, PreTrainedModel)}
        with_heads = {module for module in models if module.get_output_embeddings() is not None and not is_base(module)}
        parts = {*models, self.model.base_model} - with_heads - {self.model}
        return list(parts - encoder or parts)

    def _before(self, module, args) -> None:
        if self.running is not None:
            return
        if self.narrowed and self.ran is not None:
            raise RuntimeError(f"it calls a {type(module).__name__} after the {type(self.ran).__name__}")
        self.running = module

    def _after(self, module, args, output):
        if self.running is not module:
            return output
        self.running, self.ran, self.output = None, module, output
        # Keep one position, because quantised layers do not accept an empty batch.
        return _replaced(output, _states_of(output)[:1, :1]) if self.narrowed else output

    def _after_encoder(self, module, args, output) -> None:
        self.encoder_output = _replaced(output, _states_of(output)[:1, :1].detach())


def last_hidden_state_of(output: ModelOutput | Mapping | tuple | torch.Tensor) -> torch.Tensor:
    """The last hidden states of an output, `[batch, length, width]`. Feature maps are flattened."""
    hidden = _states_of(output)
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def _states_of(output: ModelOutput | Mapping | tuple | torch.Tensor) -> torch.Tensor:
    """The last hidden states of an output: by name, or its first entry."""
    if isinstance(output, torch.Tensor):
        return output
    return output[_key(output)] if isinstance(output, Mapping) else output[0]


def _replaced(
    output: ModelOutput | Mapping | tuple | torch.Tensor, hidden: torch.Tensor
) -> ModelOutput | Mapping | tuple | torch.Tensor:
    """An output of the same type that contains only these hidden states."""
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
