"""The kinds of tokenizers: which tokens depend on each other, their order, and how the vocabulary gets smaller."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

UNUSED = re.compile(r"\[unused\d+\]")
"""BERT's first thousand tokens. They occur in no text."""


class Kind:
    """The part `model` in the JSON of a tokenizer.

    Attributes:
        state: the JSON.
        ids: id of each token, without the added tokens.
        unknown: the unknown token, or None.
    """

    def __init__(self, state: Mapping[str, Any]):
        self.state = state
        self.ids: dict[str, int] = self._ids()
        self.unknown: str | None = self._unknown()

    def _ids(self) -> dict[str, int]:
        return dict(self.state["vocab"])

    def _unknown(self) -> str | None:
        return self.state["unk_token"]

    def required(self) -> set[str]:
        """The tokens without which other text would be tokenized differently."""
        return {self.unknown} & self.ids.keys() if self.unknown is not None else set()

    def needs(self, token: str) -> set[str]:
        """The other tokens that stay if `token` stays."""
        return set()

    def in_order(self) -> list[str]:
        """All tokens, the ones that should stay first."""
        return sorted(self.ids, key=self.ids.__getitem__)

    def are_as_good(self, tokens: Sequence[str], others: Sequence[str]) -> bool:
        """Whether a text may become either of these tokens."""
        return tokens == others

    def trimmed(self, new_ids: Mapping[str, int]) -> dict[str, Any]:
        """The JSON with only these tokens."""
        return {**self.state, "vocab": dict(new_ids)}


class WordLevel(Kind):
    """A token for each word."""


class WordPiece(Kind):
    """The longest token that matches, from left to right.

    The longest match of the whole vocabulary is also the longest match of a part of it that contains this token. So a
    text is tokenized as before if all its tokens stay.
    """

    def needs(self, token: str) -> set[str]:
        """The characters of the token, so that no word of these characters becomes unknown."""
        prefix = self.state["continuing_subword_prefix"]
        characters = set(token.removeprefix(prefix))
        return (characters | {prefix + character for character in characters}) & self.ids.keys()

    def in_order(self) -> list[str]:
        return sorted(self.ids, key=lambda token: (UNUSED.fullmatch(token) is not None, self.ids[token]))


class Unigram(Kind):
    """The tokens with the highest sum of scores.

    If all tokens of the best split stay, it is still the best. An unknown character costs more than the lowest score of
    the vocabulary. So one token with this score stays.

    If two splits have the same score, either may be chosen after a tokenizer was saved and loaded, trimmed or not: the
    tokenizers library reads scores with an error in the last bit.
    """

    def _ids(self) -> dict[str, int]:
        return {token: index for index, (token, _) in enumerate(self.state["vocab"])}

    def _unknown(self) -> str | None:
        return None if self.state["unk_id"] is None else self.state["vocab"][self.state["unk_id"]][0]

    def required(self) -> set[str]:
        lowest, _ = min(self.state["vocab"], key=lambda entry: entry[1])
        return {lowest} if self.unknown is None else {lowest, self.unknown}

    def needs(self, token: str) -> set[str]:
        """The characters of the token, so that they do not become unknown."""
        return set(token) & self.ids.keys()

    def in_order(self) -> list[str]:
        scores = dict(self.state["vocab"])
        return sorted(self.ids, key=lambda token: (-scores[token], self.ids[token]))

    def are_as_good(self, tokens: Sequence[str], others: Sequence[str]) -> bool:
        scores = dict(self.state["vocab"])
        sums = [sum(scores.get(token, 0.0) for token in split) for split in (tokens, others)]
        return tokens == others or ("".join(tokens) == "".join(others) and math.isclose(*sums, rel_tol=1e-12))

    def trimmed(self, new_ids: Mapping[str, int]) -> dict[str, Any]:
        scores = dict(self.state["vocab"])
        vocabulary = [[token, scores[token]] for token in sorted(new_ids, key=new_ids.__getitem__)]
        unk_id = None if self.unknown is None else new_ids[self.unknown]
        return {**self.state, "vocab": vocabulary, "unk_id": unk_id}


class BPE(Kind):
    """Two neighbouring tokens become one, in the order of the list of merges.

    The merges that lead to a token do not depend on the text around it. They are the merges of its own characters, and
    the tokens in between stay with it. So a text is tokenized as before if all its tokens stay: the merges that it uses
    are all there, in the same order, and there are no new ones.
    """

    def __init__(self, state: Mapping[str, Any]):
        super().__init__(state)
        self.prefix = state["continuing_subword_prefix"] or ""
        self.suffix = state["end_of_word_suffix"] or ""
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(state["merges"])}

    def needs(self, token: str) -> set[str]:
        """The characters of the token and all tokens between them and it; nothing if no merges lead to it."""
        parts = self._characters(token)
        found = set(parts)
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in pairwise(parts)]
            if (rank := min(ranks)) == len(self.ranks):
                return set()
            index = ranks.index(rank)
            parts[index : index + 2] = [self._merged(*parts[index : index + 2])]
            found.add(parts[index])
        return found & self.ids.keys()

    def in_order(self) -> list[str]:
        first: dict[str, int] = {}
        for pair, rank in self.ranks.items():
            first.setdefault(self._merged(*pair), rank)
        return sorted(self.ids, key=lambda token: (first.get(token, -1), self.ids[token]))

    def trimmed(self, new_ids: Mapping[str, int]) -> dict[str, Any]:
        merges = [
            [left, right]
            for left, right in self.state["merges"]
            if left in new_ids and right in new_ids and self._merged(left, right) in new_ids
        ]
        return {**self.state, "vocab": dict(new_ids), "merges": merges}

    def _characters(self, token: str) -> list[str]:
        body = token.removeprefix(self.prefix)
        characters = list(body.removesuffix(self.suffix))
        if not characters:
            return [token]
        marked = [self.prefix + character for character in characters]
        if body == token:
            marked[0] = characters[0]
        if self.suffix and body.endswith(self.suffix):
            marked[-1] += self.suffix
        return marked

    def _merged(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.prefix)


KINDS: dict[str, type[Kind]] = {kind.__name__: kind for kind in (WordLevel, WordPiece, BPE, Unigram)}
"""By the name that the JSON of a tokenizer gives its model."""
