"""Where a model keeps its stack of layers."""

from torch import nn
from transformers import PreTrainedModel


def find_layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The one stack of transformer layers in `model`: its dotted name and its `nn.ModuleList`.

    The stack is recognised by its length, which is the config's `num_hidden_layers` (configs with another name for it,
    such as DistilBERT's `n_layers`, map it to this one), and by its layers being of one class.

    Raises:
        ValueError: if the model is an encoder-decoder, if its config has no `num_hidden_layers`, or if there is no such
            stack or more than one.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: only models with one stack of layers can be cut."
        )
    num_layers = getattr(model.config, "num_hidden_layers", None)
    if num_layers is None:
        raise ValueError(
            f"{type(model).__name__} has no layer stack that can be cut: its config has no `num_hidden_layers`."
        )
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and len({type(m) for m in module}) == 1
    }
    # A list inside a layer (the experts of a mixture, say) can have the same length as the stack around it.
    stacks = {
        name: module for name, module in stacks.items() if not any(name.startswith(f"{outer}.") for outer in stacks)
    }
    if len(stacks) != 1:
        found = f"found {', '.join(stacks)}" if stacks else "found none"
        raise ValueError(
            f"{type(model).__name__} should have one `nn.ModuleList` of {num_layers} equal layers "
            f"(its config's `num_hidden_layers`), {found}. Models whose layers share weights, or with several stacks, "
            f"cannot be cut."
        )
    return next(iter(stacks.items()))
