"""Compares an export with its student on real texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.deployment.backends import Arrays, GeneratingBackend
from hf_distill.deployment.embeddings import EMBEDDING
from hf_distill.deployment.formats import FORMATS
from hf_distill.deployment.heads import PREDICTION_HEADS
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import TextInput, Window, windows_of

BATCH_SIZE = 4

MIN_COSINE = 0.995
"""Lowest cosine between vectors of an embedding model and those of its int8 export, by default."""

TINY = 1e-12
"""Shortest length that vectors are divided by."""


@dataclass(frozen=True)
class Parity:
    """How closely an export matches its student.

    Attributes:
        texts: number of texts, each run alone and in padded batches of mixed lengths.
        decisions: number of compared decisions: one per text; one per token for a head over tokens; and one per
            generated token for a model that generates text, each after the same tokens.
        largest_difference: largest absolute difference of two logits.
        largest_logit: largest absolute logit of the student.
        agreement: share of decisions with the same class, token or position.
        lowest_cosine: lowest cosine between a vector of the student and that of the export, for an embedding model. Its
            `decisions` are the vectors, `largest_difference` is that of two values after both vectors are divided by
            the student's length, and `agreement` is the share of vectors whose cosine is above 0.995. None for other
            models.
    """

    texts: int
    decisions: int
    largest_difference: float
    largest_logit: float
    agreement: float
    lowest_cosine: float | None = None


def measure_parity(student: Predictor, export: Predictor, texts: Sequence[TextInput]) -> Parity:
    """Runs student and export on each text alone, and in batches of mixed lengths, and compares their outputs.

    Raises:
        ValueError: if the export's tokenizer gives other tokens than the student's.
    """
    encodings = student.encoder.encode(texts)
    if [own.ids for own in export.encoder.encode(texts)] != [own.ids for own in encodings]:
        raise ValueError(
            f"Cannot export {student.name}: its tokenizer or image processor gives other inputs after it is saved and "
            f"loaded again."
        )
    windows = windows_of(encodings)
    alone = [[window] for window in windows]
    mixed = [windows[start : start + BATCH_SIZE] for start in range(0, len(windows), BATCH_SIZE)]
    differences, largest, same = [], [], []
    if student.head == EMBEDDING:
        return _of_vectors(student, export, [*alone, *mixed], len(encodings))
    for batch in [*alone, *mixed]:
        inputs = student.encoder.pad(batch)
        if isinstance(student.backend, GeneratingBackend) and isinstance(export.backend, GeneratingBackend):
            one, other = _next_logits(student.backend, export.backend, inputs, student.encoder.pad_token_id)
            differences.append(np.abs(one - other).max())
            largest.append(np.abs(one).max())
            same.append(one.argmax(-1) == other.argmax(-1))
            continue
        expected, actual = student.backend(inputs), export.backend(inputs)
        for row, window in enumerate(batch):
            for name in PREDICTION_HEADS[student.head].outputs:
                length = len(window) if PREDICTION_HEADS[student.head].per_token else None
                one, other = expected[name][row][:length], actual[name][row][:length]
                differences.append(np.abs(one - other).max())
                largest.append(np.abs(one).max())
                same.append(np.atleast_1d(one.argmax(-1) == other.argmax(-1)))
    decisions = np.concatenate(same)
    return Parity(
        texts=len(encodings),
        decisions=len(decisions),
        largest_difference=float(np.max(differences)),
        largest_logit=float(np.max(largest)),
        agreement=float(decisions.mean()),
    )


def _of_vectors(student: Predictor, export: Predictor, batches: Sequence[Sequence[Window]], num_texts: int) -> Parity:
    """Compares vectors: their direction by the cosine, and their values."""
    (name,) = PREDICTION_HEADS[EMBEDDING].outputs
    if FORMATS[export.format].batch_size == 1:  # a batch would add errors that no vector of `embed` has
        batches = [batch for batch in batches if len(batch) == 1]
    inputs = [student.encoder.pad(batch) for batch in batches]
    expected, actual = (np.concatenate([own.backend(given)[name] for given in inputs]) for own in (student, export))
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    length, own_length = (np.maximum(np.linalg.norm(own, axis=1), TINY) for own in (expected, actual))
    cosines = (expected * actual).sum(1) / (length * own_length)
    return Parity(
        texts=num_texts,
        decisions=len(cosines),
        largest_difference=float((np.abs(expected - actual) / length[:, None]).max()),
        largest_logit=float(np.abs(expected).max()),
        agreement=float((cosines >= MIN_COSINE).mean()),
        lowest_cosine=float(cosines.min()),
    )


def _next_logits(
    student: GeneratingBackend, export: GeneratingBackend, inputs: Arrays, pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of both, `[tokens, vocabulary]`, for the next token at each place of the student's texts."""
    sequences = student(inputs)["sequences"]
    is_token = sequences[:, 1:] != pad_token_id
    is_token[:, 0] = True  # the first decision, even if it is to write nothing
    one, other = (backend.next_logits(inputs, sequences)[is_token] for backend in (student, export))
    return one, other
