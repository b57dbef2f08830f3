"""Variants of texts: more training texts of the same kind, for a teacher to label."""

from collections.abc import Sequence

import numpy as np

SHORTEST_SPAN = 0.5
"""Smallest share of a text's words that its variant keeps."""

REPLACED = 0.15
"""Share of the words that are replaced."""

FEWEST_WORDS = 4
"""A text with fewer words does not vary."""


def vary_texts(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Writes one variant of each text: a part of the text, in which some words are replaced by words of other texts.

    The part is at least half of the text, and each word is replaced with probability 0.15. The more often a word is
    used in the texts, the more often it is drawn. What a variant means may differ from the text, so it has no label,
    but a teacher can predict one.

    Reference: Tang et al., 2019, Distilling Task-Specific Knowledge from BERT into Simple Neural Networks,
    https://arxiv.org/abs/1903.12136, section 3.3.

    Args:
        texts: texts whose words are separated by white space. Those with fewer than 4 words stay as they are.
        seed: seed of the draws.

    Returns:
        The variants, in the order of the texts.

    Example:
        >>> vary_texts(["a slow start but a warm and funny ending"])
        ['start warm but a warm and funny']
    """
    generator = np.random.default_rng(seed)
    words = [np.array(text.split(), dtype=object) for text in texts]
    all_words = np.concatenate(words) if words else np.array([], dtype=object)
    return [
        text if len(own) < FEWEST_WORDS else _variant(own, all_words, generator)
        for text, own in zip(texts, words, strict=True)
    ]


def _variant(words: np.ndarray, all_words: np.ndarray, generator: np.random.Generator) -> str:
    length = round(len(words) * generator.uniform(SHORTEST_SPAN, 1))
    start = generator.integers(len(words) - length + 1)
    span = words[start : start + length].copy()
    replaced = generator.random(length) < REPLACED
    span[replaced] = generator.choice(all_words, replaced.sum())
    return " ".join(span)
