"""Prepares tokenizers for tasks."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def with_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Gives a tokenizer without a padding token, such as GPT-2's, that of the model, else the end-of-text token.

    The config needs it too: the classification head of such models reads the last token before the padding.
    """
    if tokenizer.pad_token is None:
        own = model.config.pad_token_id
        tokenizer.pad_token = tokenizer.eos_token if own is None else tokenizer.convert_ids_to_tokens(own)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer
