"""Decides a class for each word of a text, and joins words into entities."""

from collections.abc import Sequence

import numpy as np

from hf_distill.deployment.text_encoder import Encoded, windows_of
from hf_distill.words import Span, deciding_tokens, group_words, labels_at


def classify_words(
    logits: np.ndarray, encoding: Encoded, words: Sequence[Span], labels: Sequence[str]
) -> tuple[list[str | None], list[float]]:
    """Reads the class of each word from its first token, in the window that gives it the most context.

    Args:
        logits: `[tokens, classes]`, for the windows of the text one after the other.
        encoding: the tokens of the text.
        words: start and end of each word in characters.
        labels: class names in the order of their numbers.

    Returns:
        The label of each word, None for a word without tokens; and its probability.
    """
    windows = windows_of([encoding])
    starts = np.cumsum([0, *map(len, windows)])
    tokens = deciding_tokens(windows, [start for start, _ in words])
    best = logits.argmax(-1)
    probabilities = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)  # of the best classes
    classes = [best[start : start + len(window)] for start, window in zip(starts, windows, strict=False)]
    scores = [0.0 if own is None else float(probabilities[starts[own[0]] + own[1]]) for own in tokens]
    return labels_at(tokens, classes, labels), scores


def find_entities_of_words(
    logits: np.ndarray, encoding: Encoded, text: str, words: Sequence[Span], labels: Sequence[str]
) -> list[dict]:
    """Finds entities: neighbouring words of one kind, with the mean probability of their labels as the score.

    Arguments are as in `classify_words`. How words are joined is described in `hf_distill.words.group_words`.
    """
    found, scores = classify_words(logits, encoding, words, labels)
    return [
        {
            "label": kind,
            "score": float(np.mean(scores[first : last + 1])),
            "text": text[words[first][0] : words[last][1]],
            "start": words[first][0],
            "end": words[last][1],
        }
        for kind, first, last in group_words(found, labels)
    ]
