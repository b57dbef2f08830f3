"""How wide what a model gives is, as far as its config says so."""

from transformers import PreTrainedConfig


def vocab_size(config: PreTrainedConfig) -> int | None:
    """How many words are told apart; where a model is made of several, those of the one that has the head."""
    own = getattr(config, "vocab_size", None)
    return own if own is not None else getattr(config.get_text_config(decoder=True), "vocab_size", None)


def hidden_width(config: PreTrainedConfig) -> int | None:
    """The width of the last hidden states, where the config says so."""
    return getattr(config, "hidden_size", None) or next(reversed(getattr(config, "hidden_sizes", None) or [None]))
