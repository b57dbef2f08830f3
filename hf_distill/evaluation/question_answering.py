"""Metrics of answers to questions: exact match and F1, as in SQuAD."""

from collections.abc import Sequence

from hf_distill.optional import optional

Scores = tuple[float, float]
"""Exact match and F1 of one answer."""


def answer_metrics(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], teacher: Sequence[str] | None = None
) -> dict[str, float]:
    """Measures answers as the official script of SQuAD 2.0, but from 0 to 1 instead of in percent.

    Case, punctuation, articles and white space do not count. F1 compares the words of two answers. Of several correct
    answers, the one that fits best counts. An empty prediction says that there is no answer.

    Reference: Rajpurkar et al., 2018, Know What You Don't Know: Unanswerable Questions for SQuAD,
    https://arxiv.org/abs/1806.03822.

    Args:
        predictions: the predicted answer to each question.
        answers: the correct answers to each question; empty if it has none.
        teacher: the teacher's answer to each question.

    Returns:
        `exact_match` and `f1`, averaged over the questions. If some questions have an answer and others none, also
        `answerable_exact_match` and `answerable_f1`, over the questions with an answer; and `unanswerable_accuracy`,
        the share of the others for which the prediction is empty. With the teacher's answers: `agreement` and
        `f1_to_teacher`, exact match and F1 with the teacher's answers as the correct ones.

    Raises:
        ValueError: if there are no predictions, or not one per question.
        ImportError: if torchmetrics is missing.

    Example:
        >>> round(answer_metrics(["in Paris", ""], [["Paris"], []])["f1"], 4)
        0.8333
    """
    if not predictions or len(predictions) != len(answers) or len(teacher or predictions) != len(predictions):
        raise ValueError(
            f"There are {len(predictions)} predictions for {len(answers)} questions, and "
            f"{'no' if teacher is None else len(teacher)} answers of the teacher. Give at least one question, and one "
            f"answer for each."
        )
    scores = [_score(own, correct) for own, correct in zip(predictions, answers, strict=True)]
    found = _means(scores)
    groups = [
        [own for own, correct in zip(scores, answers, strict=True) if bool(correct) == has] for has in (True, False)
    ]
    if all(groups):
        found |= {f"answerable_{name}": value for name, value in _means(groups[0]).items()}
        found["unanswerable_accuracy"] = _means(groups[1])["exact_match"]
    return found | ({} if teacher is None else agreement_with(predictions, teacher))


def agreement_with(predictions: Sequence[str], teacher: Sequence[str]) -> dict[str, float]:
    """`agreement` and `f1_to_teacher`, from the student's and the teacher's answers."""
    means = _means([_score(own, [other]) for own, other in zip(predictions, teacher, strict=True)])
    return {"agreement": means["exact_match"], "f1_to_teacher": means["f1"]}


def _score(prediction: str, answers: Sequence[str]) -> Scores:
    correct = [answer for answer in answers if not _squad("", [answer])[0]]  # "the" counts as empty
    return _squad(prediction, correct or [""])


def _squad(prediction: str, answers: Sequence[str]) -> Scores:
    text = optional("torchmetrics.functional.text", "metrics")
    target = {"answers": {"text": list(answers), "answer_start": []}, "id": ""}
    scores = text.squad({"prediction_text": prediction, "id": ""}, target)
    return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100


def _means(scores: Sequence[Scores]) -> dict[str, float]:
    exact, f1 = zip(*scores, strict=True)
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}
