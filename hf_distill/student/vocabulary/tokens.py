"""Counts tokens, and chooses the ones that stay."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from hf_distill.student.vocabulary.kinds import KINDS, Kind

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Tokens of byte fallback."""

BATCH_SIZE, NUM_SAMPLES = 1000, 1000


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither truncates nor pads."""
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.no_truncation()
    copied.no_padding()
    return copied


def read_kind(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], Kind]:
    """The JSON of a tokenizer, and its kind.

    Raises:
        ValueError: if it is a slow tokenizer, or one that cannot be rebuilt.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name} is a slow tokenizer, and its vocabulary cannot be trimmed: load one with a tokenizer.json, with "
            f"AutoTokenizer.from_pretrained(...)."
        )
    try:
        text = tokenizer.backend_tokenizer.to_str()
        Tokenizer.from_str(text)
    except Exception as error:  # such as parts that are written in Python
        raise ValueError(f"{name} cannot be trimmed, because it cannot be saved and loaded: {error}") from error
    state = json.loads(text)
    kind = state["model"].get("type")
    if kind not in KINDS:
        raise ValueError(f"{name} has a model of the kind {kind!r}, but should have one of {', '.join(KINDS)}.")
    read = KINDS[kind](state["model"])
    if len(read.ids) != len(state["model"]["vocab"]):
        raise ValueError(f"{name} cannot be trimmed, because some of its tokens are twice in its vocabulary.")
    return state, read


def required_tokens(tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any], kind: Kind) -> set[int]:
    """The ids that always stay: special and added tokens, bytes, and what the kind of tokenizer needs."""
    tokens = kind.required() | {token for token in kind.ids if BYTE.fullmatch(token)}
    if '"ByteLevel"' in json.dumps([state["normalizer"], state["pre_tokenizer"]]):
        alphabet = ByteLevel.alphabet()
        prefix, suffix = (
            state["model"].get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")
        )
        forms = {(before, after) for before in ("", prefix) for after in ("", suffix)}
        tokens |= {before + byte + after for byte in alphabet for before, after in forms} & kind.ids.keys()
    ids = {kind.ids[token] for token in tokens}
    ids |= set(tokenizer.all_special_ids) | {token["id"] for token in state["added_tokens"]}
    return ids | set(ids_of_post_processor(state["post_processor"]))


def ids_of_post_processor(processor: Mapping[str, Any] | None) -> Iterator[int]:
    """The token ids that a post-processor adds to a text."""
    if processor is None:
        return
    for inner in processor.get("processors", []):
        yield from ids_of_post_processor(inner)
    if isinstance(processor.get("special_tokens"), Mapping):
        for added in processor["special_tokens"].values():
            yield from added["ids"]
    yield from (processor[name][1] for name in ("sep", "cls") if name in processor)


class Texts:
    """Counts the tokens of texts, and remembers the first texts."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]):
        if isinstance(texts, str | bytes | Mapping):
            raise TypeError(f"texts must be an iterable of texts, but is a {type(texts).__name__}: put it into a list.")
        tokenizer = plain(tokenizer)
        self.counts: Counter[int] = Counter()
        self.sample: list[str] = []
        remaining = iter(texts)
        while batch := list(islice(remaining, BATCH_SIZE)):
            if wrong := [text for text in batch if not isinstance(text, str)]:
                raise TypeError(f"texts must contain only texts, but has a {type(wrong[0]).__name__}.")
            self.sample += batch[: NUM_SAMPLES - len(self.sample)]
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                self.counts.update(encoding.ids)


def check_counts(counts: Mapping[str | int, int], ids: Mapping[str, int]) -> Counter[int]:
    """Turns tokens into ids.

    Raises:
        ValueError: if a token is unknown, or a count is negative.
    """
    if not isinstance(counts, Mapping):
        raise TypeError(f"counts must map each token or id to its count, but is a {type(counts).__name__}.")
    known = set(ids.values())
    found: Counter[int] = Counter()
    for token, count in counts.items():
        token_id = ids.get(token) if isinstance(token, str) else token
        if token_id not in known:
            raise ValueError(f"counts has {token!r}, which is not a token of the tokenizer.")
        if count < 0:
            raise ValueError(f"counts must not be negative, but is {count} for {token!r}.")
        found[token_id] += count
    return +found  # without zeros


def choose_tokens(kind: Kind, required: set[int], counts: Counter[int] | None, keep: int | None) -> set[int]:
    """The ids of the tokens that stay, with all tokens that they need.

    Raises:
        ValueError: if `keep` is lower than the number of tokens that must stay.
    """
    kept = set(required)
    for token, token_id in kind.ids.items():
        if token_id in required:
            kept |= _needed(kind, token)
    if keep is None:
        assert counts is not None
        for token, token_id in kind.ids.items():
            if counts[token_id]:
                kept |= _needed(kind, token)
        return kept
    if keep < len(kept):
        raise ValueError(
            f"keep={keep} is too low: {len(kept):,} tokens always stay (special and added tokens, single bytes, the "
            f"unknown token, and tokens that the configs refer to). keep must be at least {len(kept)}."
        )
    in_order = kind.in_order()
    if counts is not None:
        in_order.sort(key=lambda token: -counts[kind.ids[token]])
    for token in in_order:
        if len(kept) == keep:
            break
        more = _needed(kind, token) - kept
        if len(kept) + len(more) <= keep:
            kept |= more
    return kept


def _needed(kind: Kind, token: str) -> set[int]:
    return {kind.ids[token], *(kind.ids[needed] for needed in kind.needs(token))}
