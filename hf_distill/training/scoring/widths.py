"""Sizes of a model's outputs, read from its config."""

from transformers import PreTrainedConfig


def vocab_size(config: PreTrainedConfig) -> int | None:
    """The size of the vocabulary. In a model with several parts, the vocabulary of the part with the head."""
    own = getattr(config, "vocab_size", None)
    return own if own is not None else getattr(config.get_text_config(decoder=True), "vocab_size", None)


def hidden_width(config: PreTrainedConfig) -> int | None:
    """The width of the last hidden states; None if the config does not have it."""
    return getattr(config, "hidden_size", None) or next(reversed(getattr(config, "hidden_sizes", None) or [None]))
