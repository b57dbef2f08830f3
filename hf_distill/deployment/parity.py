"""Compares an export with its student on real texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.deployment.backends import Arrays, GeneratingBackend
from hf_distill.deployment.heads import PREDICTION_HEADS
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import TextInput, windows_of

BATCH_SIZE = 4


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
    """

    texts: int
    decisions: int
    largest_difference: float
    largest_logit: float
    agreement: float


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


def _next_logits(
    student: GeneratingBackend, export: GeneratingBackend, inputs: Arrays, pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of both, `[tokens, vocabulary]`, for the next token at each place of the student's texts."""
    sequences = student(inputs)["sequences"]
    is_token = sequences[:, 1:] != pad_token_id
    is_token[:, 0] = True  # the first decision, even if it is to write nothing
    one, other = (backend.next_logits(inputs, sequences)[is_token] for backend in (student, export))
    return one, other
