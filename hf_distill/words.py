"""Finds the words of a text, the tokens that stand for them, and the entities that they form.

Training, evaluation and predictions all use this file, so that they read the same words. It needs neither PyTorch nor
transformers.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, Protocol

WordRule = Literal["marks", "spaces"]
"""How a text is split into words.

`marks` splits at spaces and at every punctuation mark: `(U.S.)` gives `(`, `U`, `.`, `S`, `.`, `)`. `spaces` splits off
only the marks around a word, as data sets with given words do: `(U.S.)` gives `(`, `U.S.`, `)`.
"""

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana and ideographs. Each character is a word."""

PIECES = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
ALONE = re.compile(f"[{UNSPACED}]")
JOINERS = "\u200c\u200d"
POSSESSIVE = re.compile(r"['\u2019][sS]$")

Span = tuple[int, int]
"""First character, and the one after the last."""


class Tokens(Protocol):
    """The part of `tokenizers.Encoding` that is read here."""

    @property
    def offsets(self) -> Sequence[Span]: ...

    @property
    def special_tokens_mask(self) -> Sequence[int]: ...


def split_words(text: str, rule: WordRule = "marks", boundaries: Sequence[int] = ()) -> list[Span]:
    """Splits a text into words.

    Args:
        text: the text.
        rule: how to split it.
        boundaries: positions in the text at which a word always ends.

    Returns:
        Start and end of each word in characters.

    Example:
        >>> text = "Jane Roe-Poe (U.S.)"
        >>> [text[start:end] for start, end in split_words(text)]
        ['Jane', 'Roe', '-', 'Poe', '(', 'U', '.', 'S', '.', ')']
        >>> [text[start:end] for start, end in split_words(text, "spaces")]
        ['Jane', 'Roe-Poe', '(', 'U.S.', ')']
    """
    words = _pieces(text)
    if rule == "spaces":
        words = _joined(text, words)
    if not boundaries:
        return words
    cuts = sorted(boundaries)
    parts = []
    for start, end in words:
        edges = [start, *cuts[bisect_right(cuts, start) : bisect_left(cuts, end)], end]
        parts += [(own, following) for own, following in pairwise(edges) if own < following]
    return parts


def _pieces(text: str) -> list[Span]:
    """Runs of word characters and single marks. Accents and vowel signs stay with the letters around them."""
    pieces: list[Span] = []
    after_sign = False
    for match in PIECES.finditer(text):
        first = match.group()[0]
        touches = bool(pieces) and pieces[-1][1] == match.start()
        is_sign = touches and (first in JOINERS or unicodedata.category(first)[0] == "M")
        if is_sign or (touches and after_sign and first.isalnum() and not ALONE.match(first)):
            pieces[-1] = pieces[-1][0], match.end()
        else:
            pieces.append(match.span())
        after_sign = is_sign
    return pieces


def _joined(text: str, pieces: list[Span]) -> list[Span]:
    """Joins pieces with the marks between them, and full stops with abbreviations. `'s` stays a word."""
    words: list[Span] = []
    touching: list[Span] = []
    for piece in pieces:
        if touching and (touching[-1][1] != piece[0] or _is_alone(text, touching[-1]) or _is_alone(text, piece)):
            words += _join_one(text, touching)
            touching = []
        touching.append(piece)
    return words + _join_one(text, touching)


def _is_alone(text: str, piece: Span) -> bool:
    return ALONE.match(text[piece[0]]) is not None


def _join_one(text: str, pieces: list[Span]) -> list[Span]:
    inner = [number for number, (start, _) in enumerate(pieces) if text[start].isalnum()]
    if not inner:
        return pieces
    first, last = inner[0], inner[-1]
    start, end = pieces[first][0], pieces[last][1]
    after = pieces[last + 1 :]
    is_abbreviation = "." in text[start:end] or (end - start == 1 and text[start].isalpha())
    if after and is_abbreviation and text[end] == ".":
        end, after = after[0][1], after[1:]
    possessive = POSSESSIVE.search(text, start, end)
    if possessive and possessive.start() > start:
        return [*pieces[:first], (start, possessive.start()), possessive.span(), *after]
    return [*pieces[:first], (start, end), *after]


def token_of_word(tokens: Tokens, starts: Sequence[int]) -> dict[int, int]:
    """Finds the token that stands for each word: the first one that covers the word's first character.

    Args:
        tokens: tokens of a text, or of a window of it.
        starts: first character of each word, in increasing order.

    Returns:
        Index of the token by index of the word. A word that has no such token here is left out. Several words may have
        the same token.
    """
    found: dict[int, int] = {}
    for token, ((start, end), special) in enumerate(zip(tokens.offsets, tokens.special_tokens_mask, strict=True)):
        if not special:
            for word in range(bisect_left(starts, start), bisect_left(starts, end)):
                found.setdefault(word, token)
    return found


def deciding_tokens(windows: Sequence[Tokens], starts: Sequence[int]) -> list[tuple[int, int] | None]:
    """Finds the token that decides the class of each word of a text that is read in overlapping windows.

    In each window, it is the token of `token_of_word`. Of the windows, it is the one that gives the word the most
    context on its shorter side, counted in tokens; the earliest of several.

    Args:
        windows: tokens of each window.
        starts: first character of each word, in increasing order.

    Returns:
        For each word, the index of the window and of the token in it; None for a word that no window reads.
    """
    best: list[tuple[int, int] | None] = [None] * len(starts)
    contexts = [-1] * len(starts)
    for number, window in enumerate(windows):
        inside = [token for token, special in enumerate(window.special_tokens_mask) if not special]
        for word, token in token_of_word(window, starts).items():
            context = min(token - inside[0], inside[-1] - token)
            if context > contexts[word]:
                best[word], contexts[word] = (number, token), context
    return best


def labels_at(
    tokens: Sequence[tuple[int, int] | None], classes: Sequence[Sequence[int]], label_names: Sequence[str]
) -> list[str | None]:
    """Reads the predicted label of each word.

    A word that has the same token as the word before it continues the entity of that word: `B-` becomes `I-`.

    Args:
        tokens: result of `deciding_tokens`.
        classes: predicted class number of each token of each window.
        label_names: class names in the order of their numbers.

    Returns:
        Label of each word; None for a word without a token.
    """
    labels = [None if own is None else label_names[int(classes[own[0]][own[1]])] for own in tokens]
    for word in range(1, len(tokens)):
        label = labels[word]
        if label is not None and tokens[word] == tokens[word - 1] and label.startswith("B-"):
            labels[word] = f"I-{label[2:]}"
    return labels


def is_prefixed(label_names: Sequence[str]) -> bool:
    """True for tags such as `B-PER` and `I-PER`, False for plain tags such as parts of speech."""
    return any(name.startswith(("B-", "I-")) for name in label_names)


def group_words(labels: Sequence[str | None], label_names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Joins neighbouring words into entities.

    `B-` always starts an entity. `I-` continues an entity of its kind, else it starts one, as in conlleval. Plain tags
    are joined if there is a tag `O` for the words outside; otherwise each word stands alone, as for parts of speech.

    Args:
        labels: label of each word; None is outside.
        label_names: names of all classes.

    Returns:
        Kind, index of the first word and of the last word of each entity.
    """
    joins = is_prefixed(label_names) or "O" in label_names
    groups: list[tuple[str, int, int]] = []
    for word, label in enumerate(labels):
        if label is None or label == "O":
            continue
        prefix, kind = (label[0], label[2:]) if label.startswith(("B-", "I-")) else ("I", label)
        if joins and prefix == "I" and groups and groups[-1][0] == kind and groups[-1][2] == word - 1:
            groups[-1] = kind, groups[-1][1], word
        else:
            groups.append((kind, word, word))
    return groups


def words_read(record: Mapping[str, object]) -> WordRule:
    """The rule by which a model splits texts, from its record of how its training data were read.

    Data sets with given words keep `U.S.` and `well-known` whole. In texts with spans, a span may end at any mark.
    """
    return "marks" if record.get("spans_column") else "spaces"
