"""Language tokens of multilingual models such as mBART and NLLB."""

from difflib import get_close_matches

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def set_languages(tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None) -> None:
    """Tells a tokenizer in which languages sources and targets are.

    Args:
        tokenizer: any tokenizer. One without language tokens, such as T5's, takes no languages.
        source_lang: language of the sources, as the tokenizer writes it: `en_XX` for mBART, `eng_Latn` for NLLB.
        target_lang: language of the targets.

    Raises:
        ValueError: if a language is missing or unknown, or if the tokenizer has no language tokens.
    """
    given = {"source_lang": source_lang, "target_lang": target_lang}
    name = type(tokenizer).__name__
    if not hasattr(tokenizer, "src_lang"):
        if unread := {option: value for option, value in given.items() if value is not None}:
            raise ValueError(
                f"{' and '.join(f'{option}={value!r}' for option, value in unread.items())} would have no effect, "
                f"because {name} has no language tokens: leave it out. T5 is told the languages by source_prefix, such "
                f"as 'translate English to German: '."
            )
        return
    for option, language in given.items():
        known = known_languages(tokenizer)
        if language is None:
            raise ValueError(f"{name} has a token for each language: set {option}, such as {known[0]!r}.")
        if language not in known:
            near = get_close_matches(language, known, n=3, cutoff=0.3) or known[:3]
            raise ValueError(f"{option}={language!r} is not a language of {name}, such as {', '.join(near)}.")
    tokenizer.src_lang, tokenizer.tgt_lang = source_lang, target_lang


def force_target_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a model generate in the tokenizer's target language. The generation config is saved with the model.

    Args:
        model: the model. Nothing changes if the tokenizer has no language tokens.
        tokenizer: the tokenizer, after `set_languages`.
    """
    for name, token in language_options(tokenizer).items():
        setattr(model.generation_config, name, token)
        if name in model.config.to_dict():
            setattr(model.config, name, token)


def language_options(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The options of `generate` for the tokenizer's target language; empty if it has no language tokens.

    mBART-50 and NLLB write the language first in a target, so it is forced as the first generated token. mBART-25
    writes it last and shifts it to the front, so the decoder starts with it.
    """
    language = getattr(tokenizer, "tgt_lang", None)
    if language is None or not hasattr(tokenizer, "src_lang"):
        return {}
    token = tokenizer.convert_tokens_to_ids(language)
    is_first = tokenizer(text_target="a")["input_ids"][0] == token
    return {"forced_bos_token_id" if is_first else "decoder_start_token_id": token}


def known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The languages of a tokenizer that has tokens for them: its special tokens such as `en_XX` or `eng_Latn`."""
    return [token for token in tokenizer.all_special_tokens if "_" in token and token.isidentifier()]
