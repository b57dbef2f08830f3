"""Metrics of transcripts: word and character error rates."""

import math
from collections.abc import Sequence

from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from hf_distill.evaluation.generation import check_texts, share_of_same_texts
from hf_distill.optional import optional

NORMALIZE = BasicTextNormalizer()


def transcription_metrics(
    predictions: Sequence[str],
    references: Sequence[str] | None = None,
    teacher_predictions: Sequence[str] | None = None,
) -> dict[str, float]:
    """Measures transcripts by their word and character error rates, and how closely they follow the teacher's.

    An error rate is the number of substituted, deleted and inserted words (or characters), over all texts together,
    divided by the number of those in the references. 0 is perfect, and it may be above 1. The rates come from jiwer, as
    in the example script `run_speech_recognition_seq2seq.py` of transformers.

    Reference: Radford et al., 2022, Robust Speech Recognition via Large-Scale Weak Supervision,
    https://arxiv.org/abs/2212.04356

    Args:
        predictions: the transcripts.
        references: the given texts. None if there are none.
        teacher_predictions: the teacher's transcripts of the same recordings.

    Returns:
        With references: `wer` and `cer`, of the texts as they are written; and `wer_normalized`, the word error rate
        after Whisper's basic normalization, which ignores case, punctuation and what is in brackets. With the teacher's
        transcripts: `wer_to_teacher`, the word error rate with them as references; and `same_as_teacher`, the share of
        transcripts that are the same, from 0 to 1.

    Raises:
        ValueError: if there are no texts or different numbers of them, or if no reference has a word.
        ImportError: if jiwer is missing.

    Example:
        >>> transcription_metrics(["The cat sat"], ["the cat sat down."])["wer_normalized"]
        0.25
    """
    check_texts(predictions, references, teacher_predictions)
    jiwer = optional("jiwer", "metrics")
    scores: dict[str, float] = {}
    if references is not None:
        texts = _with_words(references, "references"), list(predictions)
        normalized = [[_normalized(text) for text in own] for own in texts]
        scores["wer"] = float(jiwer.wer(*texts))
        scores["wer_normalized"] = float(jiwer.wer(_with_words(normalized[0], "references"), normalized[1]))
        scores["cer"] = float(jiwer.cer(*texts))
    if teacher_predictions is not None:
        by_teacher = _with_words(teacher_predictions, "teacher_predictions")
        scores["wer_to_teacher"] = float(jiwer.wer(by_teacher, list(predictions)))
        scores["same_as_teacher"] = share_of_same_texts(predictions, teacher_predictions)
    return scores


def error_rate(reference: str, text: str) -> float:
    """The word error rate of one text, normalized as Whisper does; infinite if only the reference has no words."""
    jiwer = optional("jiwer", "metrics")
    right, own = _normalized(reference), _normalized(text)
    if not right:
        return math.inf if own else 0.0
    return float(jiwer.wer(right, own))


def _normalized(text: str) -> str:
    """A text in lower case without punctuation and without what is in brackets, as Whisper's basic normalization."""
    return NORMALIZE(text).strip()


def _with_words(texts: Sequence[str], name: str) -> list[str]:
    if not any(text.strip() for text in texts):
        raise ValueError(f"The {name} have no words, so no error rate can be given: give texts with words.")
    return list(texts)
