"""What models are measured on: texts of exact lengths, or images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_distill.deployment.backends import Arrays
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import windows_of

LENGTHS = (16, 64, 128, 256)
"""Text lengths, in tokens, at which latency is measured by default."""

NUM_TEXTS = 32
"""Number of texts for throughput: enough to fill the largest batch."""

FILES = ("image", "audio")
"""Stand for the length where inputs are images or recordings, which have one size."""

Length = int | str


def exact_input(predictor: Predictor, texts: Sequence[Any], length: int, name: str) -> Arrays:
    """Model inputs of exactly `[1, length]`: real texts, joined, and truncated by the model's tokenizer.

    Raises:
        ValueError: if the model accepts fewer tokens, or if the texts cannot fill that length.
    """
    encoder = predictor.encoder
    num_special = encoder.tokenizer.num_special_tokens_to_add(False)
    if not num_special < length <= encoder.max_length:
        raise ValueError(
            f"Cannot measure {name} at {length} tokens: it accepts {num_special + 1} to {encoder.max_length}, special "
            f"tokens included."
        )
    cutting = encoder.cut_to(length)
    joined = " ".join(text if isinstance(text, str) else " ".join(text) for text in texts)
    (encoding,) = cutting.encode([joined])
    if len(encoding) < length:
        per_copy = max(1, len(encoding) - num_special)
        (encoding,) = cutting.encode([" ".join([joined] * math.ceil(length / per_copy + 1))])
    if len(encoding) != length:
        raise ValueError(
            f"The texts give {name} {len(encoding)} tokens when {length} are needed, even when repeated: give texts "
            f"with more words."
        )
    return encoder.pad(windows_of([encoding]))


def reads_of(predictors: Mapping[str, Predictor]) -> str:
    """What all models read.

    Raises:
        ValueError: if one reads images and another texts.
    """
    reads = {name: own.reads if own.reads in FILES else "text" for name, own in predictors.items()}
    if len(set(reads.values())) > 1:
        said = ", ".join(f"{name} reads {own}" for name, own in reads.items())
        raise ValueError(f"Only models that read the same can be compared, but {said}.")
    return next(iter(reads.values()))


def lengths_to_measure(predictors: Mapping[str, Predictor], lengths: Sequence[int] | None) -> list[Length]:
    """The lengths of texts for the latency, by default as far as all models accept them.

    For images and recordings, only what they are: a name in `FILES`.
    """
    if (reads := reads_of(predictors)) in FILES:
        if lengths is not None:
            raise ValueError(f"lengths={list(lengths)} has no effect on models that read {reads}: leave it out.")
        return [reads]
    if lengths is not None:
        if not lengths:
            raise ValueError("lengths is empty: give some numbers of tokens, or leave it out for the default.")
        return [*sorted(set(lengths))]
    longest = min(own.encoder.max_length for own in predictors.values())
    return [length for length in LENGTHS if length <= longest] or [longest]


def repeated(texts: Sequence[Any]) -> list[Any]:
    """As many inputs as throughput is measured on."""
    copies = math.ceil(NUM_TEXTS / len(texts))
    return (list(texts) * copies)[:NUM_TEXTS]


def spread_over(inputs: Sequence[Any], number: int = NUM_TEXTS) -> list[Any]:
    """Some of the inputs, evenly spaced: data may be sorted by class."""
    return list(inputs[:: max(1, len(inputs) // number)][:number])
