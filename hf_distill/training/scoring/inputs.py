"""What the inputs of a batch say: how many examples there are, what is padding, what a decoder reads."""

import sys
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


def count_examples(inputs: Mapping[str, torch.Tensor]) -> int:
    """How many examples a batch has."""
    return len(_main_input(inputs))


MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


def _main_input(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the model reads: other entries of a batch may have no row per example."""
    return inputs[next((name for name in MAIN_INPUTS if inputs.get(name) is not None), next(iter(inputs)))]


def attended_positions(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`[batch, length]`, or `[batch, 1]` for inputs that are not made of tokens."""
    tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if tokens is None:
        examples = _main_input(inputs)
        return torch.ones(len(examples), 1, dtype=torch.bool, device=examples.device)
    if (attention_mask := inputs.get("attention_mask")) is not None:
        return attended_by_mask(attention_mask)
    shape = tokens.shape if "input_ids" in inputs else tokens.shape[:-1]
    return torch.ones(shape, dtype=torch.bool, device=tokens.device)


def attended_by_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """`[batch, length]`, True for what is attended, out of a mask of tokens or of packed documents."""
    if attention_mask.ndim == 4:  # who attends to whom: what is attended attends to itself
        attention_mask = attention_mask[:, 0].diagonal(dim1=1, dim2=2)
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask.eq(0)
    return attention_mask.bool()


def first_examples(attended: torch.Tensor, num_examples: int | None) -> torch.Tensor:
    """`attended`, False for all but the first examples."""
    if num_examples is None:
        return attended
    is_first = torch.arange(len(attended), device=attended.device) < num_examples
    return attended & is_first.reshape(-1, *[1] * (attended.ndim - 1))


def decoder_input_ids_of(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """`[batch, length]`: what the decoder reads where the batch has only labels, as the model's own forward makes it.

    Raises:
        ValueError: if the model does not say how.
    """
    for name in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
        if hasattr(model, name):
            return getattr(model, name)(labels)
    for cls in type(model).__mro__:
        # What the forwards of BART's relatives call, whether or not the model has a method for it.
        if shift_tokens_right := getattr(sys.modules[cls.__module__], "shift_tokens_right", None):
            ids = {name: getattr(model.config, name, None) for name in ("pad_token_id", "decoder_start_token_id")}
            if None in ids.values():
                raise ValueError(f"The decoder's inputs need both of {ids} in the config of {type(model).__name__}.")
            return shift_tokens_right(labels, **ids)
    raise ValueError(
        f"{type(model).__name__} does not say what its decoder reads for given labels: give the batch "
        f"decoder_input_ids."
    )
