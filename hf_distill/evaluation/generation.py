"""Metrics of generated texts: ROUGE for summaries, BLEU and chrF for translations."""

from collections.abc import Callable, Sequence

import numpy as np

from hf_distill.optional import optional

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def summarization_metrics(
    predictions: Sequence[str],
    references: Sequence[str] | None = None,
    teacher_predictions: Sequence[str] | None = None,
    sentences: Callable[[str], Sequence[str]] | None = None,
) -> dict[str, float]:
    """Measures summaries by ROUGE, and how closely they follow the teacher's.

    The F-measures of `rouge_score` with stemming, averaged over the texts, from 0 to 100, as in the example script
    `run_summarization.py` of transformers. (The script resamples the texts, so its numbers vary a little.) ROUGE reads
    the letters a to z and digits only: for other scripts use `translation_metrics`, whose chrF reads all characters.

    ROUGE-Lsum compares sentence by sentence. Sentences are split where a text has line breaks; a text without line
    breaks is split by NLTK's Punkt algorithm without its trained abbreviations, so that nothing is downloaded. For the
    same values as the script, pass `sentences=nltk.sent_tokenize`, which needs NLTK's data.

    Reference: Lin, 2004, ROUGE, https://aclanthology.org/W04-1013

    Args:
        predictions: the generated summaries.
        references: the given summaries. None if there are none.
        teacher_predictions: the teacher's summaries of the same texts.
        sentences: splits a text into sentences, for ROUGE-Lsum.

    Returns:
        With references: `rouge1`, `rouge2`, `rougeL`, `rougeLsum`. With the teacher's summaries: `rougeL_to_teacher`,
        ROUGE-L with them as references; and `same_as_teacher`, the share of summaries that are the same, from 0 to 1.
        Always: `words`, the mean length of the generated summaries in words.

    Raises:
        ValueError: if there are no texts or different numbers of them.
        ImportError: if `rouge_score` is missing.

    Example:
        >>> summarization_metrics(["The cat sat."], ["The cat sat down."])["rouge1"]
        85.71428571428571
    """
    check_texts(predictions, references, teacher_predictions)
    split = sentences or _sentences
    scores: dict[str, float] = {}
    if references is not None:
        scores |= _rouge(predictions, references, ROUGE_TYPES, split)
    if teacher_predictions is not None:
        scores["rougeL_to_teacher"] = _rouge(predictions, teacher_predictions, ("rougeL",), split)["rougeL"]
        scores["same_as_teacher"] = share_of_same_texts(predictions, teacher_predictions)
    return scores | {"words": _words(predictions)}


def translation_metrics(
    predictions: Sequence[str],
    references: Sequence[str] | None = None,
    teacher_predictions: Sequence[str] | None = None,
    tokenize: str = "13a",
) -> dict[str, float]:
    """Measures translations by BLEU and chrF, and how closely they follow the teacher's.

    Both come from sacrebleu, over all texts together, from 0 to 100, as in the example script `run_translation.py` of
    transformers.

    Reference: Post, 2018, A Call for Clarity in Reporting BLEU Scores, https://arxiv.org/abs/1804.08771; Popović,
    2015, chrF, https://aclanthology.org/W15-3049

    Args:
        predictions: the generated translations.
        references: the given translations, one for each. None if there are none.
        teacher_predictions: the teacher's translations of the same texts.
        tokenize: sacrebleu's tokenizer for BLEU. `"zh"` is for Chinese; `"char"` for other languages without spaces.

    Returns:
        With references: `bleu` and `chrf`. With the teacher's translations: `bleu_to_teacher` and `chrf_to_teacher`,
        with them as references; and `same_as_teacher`, the share of translations that are the same, from 0 to 1.
        Always: `words`, the mean length of the generated translations in words.

    Raises:
        ValueError: if there are no texts or different numbers of them.
        ImportError: if sacrebleu is missing.

    Example:
        >>> translation_metrics(["The cat sat on the mat."], ["The cat sat on the mat."])["bleu"]
        100.00000000000004
    """
    check_texts(predictions, references, teacher_predictions)
    scores: dict[str, float] = {}
    if references is not None:
        scores |= _bleu_and_chrf(predictions, references, tokenize)
    if teacher_predictions is not None:
        to_teacher = _bleu_and_chrf(predictions, teacher_predictions, tokenize)
        scores |= {f"{name}_to_teacher": score for name, score in to_teacher.items()}
        scores["same_as_teacher"] = share_of_same_texts(predictions, teacher_predictions)
    return scores | {"words": _words(predictions)}


def _rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    types: Sequence[str],
    sentences: Callable[[str], Sequence[str]],
) -> dict[str, float]:
    scorer = optional("rouge_score.rouge_scorer", "metrics").RougeScorer(types, use_stemmer=True)
    by_line = [["\n".join(sentences(text.strip())) for text in texts] for texts in (references, predictions)]
    scores = [scorer.score(reference, prediction) for reference, prediction in zip(*by_line, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in types}


def _sentences(text: str) -> Sequence[str]:
    """The lines of a text, or the sentences of its only line."""
    lines = text.splitlines()
    return lines if len(lines) > 1 else optional("nltk.tokenize", "metrics").PunktSentenceTokenizer().tokenize(text)


def _bleu_and_chrf(predictions: Sequence[str], references: Sequence[str], tokenize: str) -> dict[str, float]:
    metrics = optional("sacrebleu.metrics", "metrics")
    texts, others = [[text.strip() for text in given] for given in (predictions, references)]
    bleu, chrf = metrics.BLEU(tokenize=tokenize), metrics.CHRF()
    return {
        "bleu": float(bleu.corpus_score(texts, [others]).score),
        "chrf": float(chrf.corpus_score(texts, [others]).score),
    }


def share_of_same_texts(predictions: Sequence[str], others: Sequence[str]) -> float:
    """The share of texts that are the same, apart from white space around them."""
    return float(np.mean([text.strip() == other.strip() for text, other in zip(predictions, others, strict=True)]))


def _words(texts: Sequence[str]) -> float:
    return float(np.mean([len(text.split()) for text in texts]))


def check_texts(
    predictions: Sequence[str], references: Sequence[str] | None, teacher_predictions: Sequence[str] | None
) -> None:
    """Raises `ValueError` if there are no predictions, or not as many of the others."""
    if not len(predictions):
        raise ValueError("There are no predictions: give at least one text.")
    for name, others in (("references", references), ("teacher_predictions", teacher_predictions)):
        if others is not None and len(others) != len(predictions):
            raise ValueError(
                f"There are {len(predictions)} predictions, but {len(others)} {name}: give one for each prediction."
            )
