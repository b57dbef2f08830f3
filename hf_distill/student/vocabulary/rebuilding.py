"""Rebuilds a tokenizer with fewer tokens."""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_distill.student.vocabulary.kinds import Kind
from hf_distill.student.vocabulary.tokens import plain

SETTINGS = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
"""Settings that may have changed since the tokenizer was loaded."""


def rebuild(
    tokenizer: PreTrainedTokenizerBase,
    state: Mapping[str, Any],
    kind: Kind,
    new_ids: Mapping[int, int],
    texts: Sequence[str],
) -> PreTrainedTokenizerBase:
    """Makes a tokenizer of the same class, as it is after saving and loading it.

    Args:
        tokenizer: the whole tokenizer. It does not change.
        state: its JSON.
        kind: its kind.
        new_ids: the new id of each token that stays.
        texts: texts on which the new tokenizer is checked.

    Raises:
        ValueError: if the new tokenizer differs on a text of kept tokens, or after it is saved and loaded.
    """
    name = type(tokenizer).__name__
    try:
        backend = Tokenizer.from_str(json.dumps(_trimmed(state, kind, new_ids)))
    except Exception as error:  # tokenizers raises no narrower class
        raise ValueError(f"{name} cannot be rebuilt with {len(new_ids)} tokens: {error}") from error
    ids = {token: new_ids[old] for token, old in tokenizer.get_vocab().items() if old in new_ids}
    changed = copy.copy(tokenizer)
    changed._tokenizer = backend
    changed.init_kwargs = {
        key: value for key, value in tokenizer.init_kwargs.items() if key not in ("vocab", "merges", "vocab_file")
    }
    changed.init_kwargs |= {key: getattr(tokenizer, key) for key in SETTINGS if hasattr(tokenizer, key)}
    with tempfile.TemporaryDirectory() as folder:
        changed.save_pretrained(folder)
        try:
            loaded = type(tokenizer).from_pretrained(folder)
        except Exception as error:
            raise ValueError(f"{name} cannot be loaded with {len(new_ids)} tokens: {error}") from error
    loaded.name_or_path = loaded.init_kwargs["name_or_path"] = tokenizer.name_or_path
    if loaded.get_vocab() != ids:
        raise ValueError(f"{name} has other tokens or ids after it was saved and loaded, so it cannot be trimmed.")
    _check(tokenizer, loaded, kind, new_ids, texts)
    return loaded


def _trimmed(state: Mapping[str, Any], kind: Kind, new_ids: Mapping[int, int]) -> dict[str, Any]:
    trimmed = copy.deepcopy({name: part for name, part in state.items() if name != "model"})
    trimmed["model"] = kind.trimmed({token: new_ids[old] for token, old in kind.ids.items() if old in new_ids})
    for added in trimmed["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    if trimmed["padding"] is not None:
        trimmed["padding"]["pad_id"] = new_ids.get(trimmed["padding"]["pad_id"], trimmed["padding"]["pad_id"])
    if trimmed["post_processor"] is not None:
        _remap(trimmed["post_processor"], new_ids)
    return trimmed


def _remap(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    for inner in processor.get("processors", []):
        _remap(inner, new_ids)
    if isinstance(processor.get("special_tokens"), Mapping):
        for added in processor["special_tokens"].values():
            added["ids"] = [new_ids[old] for old in added["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            token, old = processor[name]
            processor[name] = [token, new_ids[old]]


def _check(
    tokenizer: PreTrainedTokenizerBase,
    trimmed: PreTrainedTokenizerBase,
    kind: Kind,
    new_ids: Mapping[int, int],
    texts: Sequence[str],
) -> None:
    """Compares the tokens of all texts whose tokens stay, without unknown words."""
    known = new_ids.keys() - {kind.ids.get(kind.unknown or "")}
    whole, small = (plain(own.backend_tokenizer).encode_batch_fast(list(texts)) for own in (tokenizer, trimmed))
    for text, expected, actual in zip(texts, whole, small, strict=True):
        if not known >= set(expected.ids) or [new_ids[old] for old in expected.ids] == actual.ids:
            continue
        before, after = tokenizer.convert_ids_to_tokens(expected.ids), trimmed.convert_ids_to_tokens(actual.ids)
        if not kind.are_as_good(before, after):
            raise ValueError(
                f"{type(tokenizer).__name__} cannot be trimmed: {text!r} becomes {after}, but was {before}. A "
                f"tokenizer must be the same after it was saved and loaded."
            )
