"""The part of a model that its head reads from."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_distill.training.scoring.find_head import is_base
from hf_distill.training.scoring.heads import Head


class Backbone:
    """The part of a model that its head reads from: watched during one forward, left out when the head is run again.

    It is the outermost transformers model that runs inside of it, other than one with a vocabulary head of its own and
    the encoder of an encoder-decoder: `BertModel` in `BertForMaskedLM`, the decoder of T5, `OPTDecoder` in
    `OPTForCausalLM`, which does not call the `OPTModel` around it, and the `BertModel` inside of the `BertLMHeadModel`
    that is the decoder of an `EncoderDecoderModel`.
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
        """`[batch, length, width]`, of all positions; feature maps `[batch, width, height, width]` are flattened."""
        hidden = None if self.output is None else _states_of(self.output)
        return hidden.flatten(2).transpose(1, 2) if hidden is not None and hidden.ndim == 4 else hidden

    def run_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of hidden states `[piece, width]`: its own forward, with the backbone left out."""
        assert self.ran is not None
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
