"""Texts to vectors with an embedding model: prompts, and batches of any number of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_distill.deployment.text_encoder import check_text

EMBEDDING = "embedding"
"""The name of the head in `PREDICTION_HEADS`."""

PART = 8192
"""Number of texts whose tokens are in memory at a time."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of an embedding model: texts that are put in front of each text.

    Attributes:
        by_name: prompts by name, such as `{"query": "query: ", "document": "passage: "}`.
        default: name of the prompt to use if none is named; None for no prompt.
    """

    by_name: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def find(self, name: str | None) -> str:
        """The prompt of a name, or the default one.

        Raises:
            ValueError: if there is no prompt of that name.
        """
        if name is None:
            return "" if self.default is None else self.by_name.get(self.default, "")
        if name not in self.by_name:
            known = f"known are {', '.join(map(repr, self.by_name))}" if self.by_name else "the model has no prompts"
            raise ValueError(f"prompt_name={name!r} is not a prompt of the model: {known}.")
        return self.by_name[name]


def embed(predictor: Any, texts: Sequence[str], prompt: str, batch_size: int | None = None) -> np.ndarray:
    """The work of `Predictor.embed`, of which `predictor` is one, with the prompt itself: `[texts, width]` in fp32."""
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings, but is one string: give [{texts[:40]!r}].")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more.")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Text {number} must be a string, but is {type(text).__name__}.")
        check_text(number, text)  # without the prompt, so that an empty text is noticed
    vectors = []
    for start in range(0, len(texts), PART):
        encodings = predictor.encoder.encode([f"{prompt}{text}" for text in texts[start : start + PART]])
        for outputs, encoding in zip(predictor.run(encodings, batch_size=batch_size), encodings, strict=True):
            vectors.append(predictor.read(outputs, encoding, None))
    return np.stack(vectors) if vectors else np.empty((0, predictor.reader.width or 0), np.float32)
