"""An export beside the student that it was made of, on real texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.deployment.heads import PREDICTION_HEADS
from hf_distill.deployment.predictor import Predictor
from hf_distill.deployment.text_encoder import TextInput

BATCH_SIZE = 4


@dataclass(frozen=True)
class Parity:
    """How near an export is to its student.

    Attributes:
        texts: how many were read, each alone and then in padded batches of mixed lengths.
        decisions: how many were compared: texts; or tokens, for a head over tokens.
        largest_difference: between two logits.
        largest_logit: of the student's, as a distance from 0.
        agreement: the share of decisions with the same class, token or position.
    """

    texts: int
    decisions: int
    largest_difference: float
    largest_logit: float
    agreement: float


def measure_parity(student: Predictor, export: Predictor, texts: Sequence[TextInput]) -> Parity:
    """Both read each text alone, and then in batches of which each has texts of all lengths.

    Raises:
        ValueError: if the export's tokenizer makes other tokens than the student's.
    """
    encodings = student.encoder.encode(texts)
    if [own.ids for own in export.encoder.encode(texts)] != [own.ids for own in encodings]:
        raise ValueError(f"The tokenizer of {student.name} makes other tokens once it is saved: it cannot be exported.")
    alone = [[encoding] for encoding in encodings]
    mixed = [encodings[start : start + BATCH_SIZE] for start in range(0, len(encodings), BATCH_SIZE)]
    differences, largest, same = [], [], []
    for batch in [*alone, *mixed]:
        inputs = student.encoder.pad(batch)
        expected, actual = student.backend(inputs), export.backend(inputs)
        for row, encoding in enumerate(batch):
            for name in PREDICTION_HEADS[student.head].outputs:
                length = len(encoding) if PREDICTION_HEADS[student.head].per_token else None
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
