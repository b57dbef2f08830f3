"""Metrics of tagged words: entities by seqeval, parts of speech by scikit-learn."""

from collections.abc import Sequence

import numpy as np

from hf_distill.optional import optional
from hf_distill.words import group_words, is_prefixed

OUTSIDE = "O"

Labels = Sequence[Sequence[str | None]]
"""The label of each word of each text."""


def tagging_metrics(predictions: Labels, references: Labels, label_names: Sequence[str]) -> dict[str, float]:
    """Measures how well words are tagged.

    For tags such as `B-PER` and `I-PER`, an entity counts as found if its kind, its first word and its last word are
    right, as in the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder, 2003, https://aclanthology.org/W03-0419). An
    `I-` that does not continue an entity of its kind starts one, in predictions and references. seqeval counts.

    Args:
        predictions: predicted label of each word of each text; None if the model did not read the word.
        references: correct label of each word; None if it is unknown. These words are left out.
        label_names: names of all classes.

    Returns:
        `accuracy`, the share of words with the correct label. For tags with `B-` and `I-`: `precision`, `recall` and
        `f1` over all entities, and the F1 of each kind, such as `f1_PER`. For plain tags: `f1`, the mean of the F1 of
        the tags that occur in predictions or references (macro).

    Raises:
        ValueError: if predictions and references differ in the number of texts or words, or if no label is known.
        ImportError: if seqeval or scikit-learn is missing.

    Example:
        >>> names = ["O", "B-PER", "I-PER"]
        >>> tagging_metrics([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]], names)["f1"]
        0.0
    """
    predicted, correct = _known(predictions, references)
    pairs = [pair for own in zip(predicted, correct, strict=True) for pair in zip(*own, strict=True)]
    if not pairs:
        raise ValueError("No word has a known label: give labelled data.")
    accuracy = sum(own == other for own, other in pairs) / len(pairs)
    if is_prefixed(label_names):
        return {**_entity_metrics(predicted, correct, label_names), "accuracy": accuracy}
    guesses, labels = zip(*pairs, strict=True)
    occurring = [name for name in label_names if name in {*guesses, *labels}]
    f1_score = optional("sklearn.metrics", "metrics").f1_score
    score = f1_score(labels, guesses, average="macro", labels=occurring, zero_division=0)
    return {"accuracy": accuracy, "f1": float(score)}


def tagging_counts(
    metric: str, predictions: Labels, references: Labels, label_names: Sequence[str]
) -> np.ndarray | None:
    """For each text, two numbers; the metric of some texts is the sum of the first divided by that of the second.

    Args:
        metric: `"accuracy"`, or `"f1"` over all entities.
        predictions: as in `tagging_metrics`.
        references: as in `tagging_metrics`.
        label_names: names of all classes.

    Returns:
        `[texts, 2]`: words with the correct label, and words; or twice the entities that were found, and the entities
        in predictions and references together. None for the macro F1 of plain tags, a mean of several ratios.
    """
    if metric == "f1" and not is_prefixed(label_names):
        return None
    counts = []
    for own, labels in zip(*_known(predictions, references), strict=True):
        if metric == "accuracy":
            counts.append((sum(guess == label for guess, label in zip(own, labels, strict=True)), len(labels)))
        else:
            found, entities = (set(group_words(tags, label_names)) for tags in (own, labels))
            counts.append((2 * len(found & entities), len(found) + len(entities)))
    return np.array(counts, dtype=float)


def tagging_fidelity(predictions: Labels, teacher: Labels, label_names: Sequence[str]) -> dict[str, float]:
    """Measures how closely a model follows its teacher.

    Args:
        predictions: the model's label of each word of each text.
        teacher: the teacher's.
        label_names: names of all classes.

    Returns:
        `agreement`, the share of words with the same label; and, for tags with `B-` and `I-`, `f1_to_teacher`, the F1
        of the entities if the teacher's were the correct ones.
    """
    metrics = tagging_metrics(predictions, [[label or OUTSIDE for label in own] for own in teacher], label_names)
    fidelity = {"agreement": metrics["accuracy"]}
    return {**fidelity, "f1_to_teacher": metrics["f1"]} if is_prefixed(label_names) else fidelity


def _known(predictions: Labels, references: Labels) -> tuple[list[list[str]], list[list[str]]]:
    """The words with a known label."""
    if len(predictions) != len(references):
        raise ValueError(f"There are predictions for {len(predictions)} texts, but labels for {len(references)}.")
    predicted, correct = [], []
    for number, (own, labels) in enumerate(zip(predictions, references, strict=True)):
        if len(own) != len(labels):
            raise ValueError(f"Text {number} has {len(own)} predictions, but {len(labels)} labels.")
        known = [(guess or OUTSIDE, label) for guess, label in zip(own, labels, strict=True) if label is not None]
        predicted.append([guess for guess, _ in known])
        correct.append([label for _, label in known])
    return predicted, correct


def _entity_metrics(
    predicted: Sequence[list[str]], correct: Sequence[list[str]], label_names: Sequence[str]
) -> dict[str, float]:
    from_tags = [[_as_iob2(labels, label_names) for labels in own] for own in (correct, predicted)]
    if not any(label != OUTSIDE for own in from_tags for labels in own for label in labels):
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    report = optional("seqeval.metrics", "metrics").classification_report(
        *from_tags,
        mode="strict",
        scheme=optional("seqeval.scheme", "metrics").IOB2,
        output_dict=True,
        zero_division=0,
    )
    means = {name: report.pop(f"{name} avg") for name in ("micro", "macro", "weighted")}
    scores = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    by_kind = {f"f1_{kind}": float(own["f1-score"]) for kind, own in report.items()}
    return {name: float(means["micro"][key]) for name, key in scores.items()} | by_kind


def _as_iob2(labels: Sequence[str], label_names: Sequence[str]) -> list[str]:
    tags = [OUTSIDE] * len(labels)
    for kind, first, last in group_words(labels, label_names):
        tags[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
    return tags
