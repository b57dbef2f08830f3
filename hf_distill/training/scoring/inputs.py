"""Facts about a batch's inputs: the number of examples, the padding, and the decoder's inputs."""

import sys
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


def count_examples(inputs: Mapping[str, torch.Tensor]) -> int:
    """The number of examples in a batch."""
    return len(_main_input(inputs))


MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


def _main_input(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The model's main input. Other entries of a batch may not have one row per example."""
    return inputs[next((name for name in MAIN_INPUTS if inputs.get(name) is not None), next(iter(inputs)))]


def attended_positions(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """True where there is no padding: `[batch, length]` for tokens, `[batch, 1]` for images and audio."""
    tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if tokens is None:
        examples = _main_input(inputs)
        return torch.ones(len(examples), 1, dtype=torch.bool, device=examples.device)
    if (attention_mask := inputs.get("attention_mask")) is not None:
        return attended_by_mask(attention_mask)
    shape = tokens.shape if "input_ids" in inputs else tokens.shape[:-1]
    return torch.ones(shape, dtype=torch.bool, device=tokens.device)


def attended_by_mask(attention_mask: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
    """True for attended tokens, `[batch, length]`, from a mask of tokens or of packed documents."""
    if isinstance(attention_mask, Mapping):  # a mask for each layer type, with the same tokens
        attention_mask = next(iter(attention_mask.values()))
    if attention_mask.ndim == 4:  # which token attends to which: an attended token attends to itself
        attention_mask = attention_mask[:, 0].diagonal(dim1=1, dim2=2)
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask.eq(0)
    return attention_mask.bool()


def first_examples(attended: torch.Tensor, num_examples: int | None) -> torch.Tensor:
    """`attended`, but False for all except the first examples."""
    if num_examples is None:
        return attended
    is_first = torch.arange(len(attended), device=attended.device) < num_examples
    return attended & is_first.reshape(-1, *[1] * (attended.ndim - 1))


def decoder_input_ids_of(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """The decoder's inputs, `[batch, length]`, derived from labels as in the model's own forward.

    Raises:
        ValueError: if the model has no function for it, or if its config lacks the necessary token ids.
    """
    for name in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
        if hasattr(model, name):
            return getattr(model, name)(labels)
    for cls in type(model).__mro__:
        # BART and related models call this function in their forward, even if they have no method for it.
        if shift_tokens_right := getattr(sys.modules[cls.__module__], "shift_tokens_right", None):
            ids = {name: getattr(model.config, name, None) for name in ("pad_token_id", "decoder_start_token_id")}
            if None in ids.values():
                raise ValueError(
                    f"The decoder's inputs are derived from both of {ids}: set them in the config of "
                    f"{type(model).__name__}."
                )
            return shift_tokens_right(labels, **ids)
    raise ValueError(
        f"{type(model).__name__} has no function that derives decoder inputs from labels: add decoder_input_ids to the "
        f"batch."
    )
