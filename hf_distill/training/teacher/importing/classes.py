"""Turns the class probabilities, logits and votes of another program into logits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.scoring.find_head import OF_PROBLEM_TYPE
from hf_distill.training.teacher.columns import DTYPES, IMPORTED, LOGITS
from hf_distill.training.teacher.importing.writing import Row

PROBLEM_TYPES = {
    "probabilities": "single_label_classification",
    "logits": "single_label_classification",
    "votes": "single_label_classification",
    "multi_label_probabilities": "multi_label_classification",
    "multi_label_logits": "multi_label_classification",
    "regression": "regression",
}
"""For each format, the `problem_type` of the student."""

SMOOTHED = ("probabilities", "votes", "multi_label_probabilities")
"""The formats whose logits are logarithms, which are infinite for 0."""

SUM_TOLERANCE = 1e-3
"""How far the sum of a row's probabilities may be from 1. Some programs round to 4 decimals."""


class ClassReader:
    """Reads the logits of rows.

    Args:
        format: a key of `PROBLEM_TYPES`.
        labels: the names of the classes, in the order of the logits.
        smoothing: added to each probability or number of votes.
    """

    dtypes: ClassVar[dict[str, str]] = {LOGITS: DTYPES[LOGITS]}

    def __init__(self, format: str, labels: list[str], smoothing: float):
        self.format, self.labels, self.smoothing = format, labels, smoothing

    def prepare(self, dataset: Dataset, entries: Iterable[Any]) -> None:
        """Does nothing: each row is read by itself."""

    def read(self, dataset: Dataset, entries: Iterable[Any]) -> Iterator[Row]:
        """Reads the logits of each row, `[classes]`.

        Args:
            dataset: the rows, which need not be tokenised.
            entries: one per row, in any of the shapes that `import_teacher_targets` lists.

        Raises:
            ValueError: if a row lacks a class, has an unknown one, or has values that do not fit the format.
        """
        for row, entry in enumerate(entries):
            values = np.array(_values_in_order(entry, self.format, self.labels, row), dtype=np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"Row {row} has values that are not finite: {values.tolist()}.")
            if self.format in SMOOTHED:
                values = _log_probabilities(values, self.format, self.labels, self.smoothing, row)
            yield {LOGITS: values.astype(DTYPES[LOGITS])}

    def description(self) -> dict[str, Any]:
        """The entries of `Source` that depend on the format."""
        problem_type = PROBLEM_TYPES[self.format]
        head = OF_PROBLEM_TYPE[problem_type]
        spec = HeadSpec(
            model=f"{IMPORTED} teacher",
            auto_class=head.auto_class,
            logits_per_token=None,
            distribution=head.distribution,
            num_labels=len(self.labels),
            problem_type=problem_type,
            labels=self.labels,
            vocab_size=None,
            decoder_start_token_id=None,
            hidden_width=None,
        )
        return {"head_spec": spec, "vocabulary": None, "reads_text": True, "top_k": None, "temperature": None}


def _log_probabilities(values: np.ndarray, format: str, labels: list[str], smoothing: float, row: int) -> np.ndarray:
    """`log p`, whose softmax is p; `log p - log(1 - p)` for several labels, whose sigmoid is p."""
    if values.min() < 0:
        raise ValueError(f"Row {row} has negative {format.replace('_', ' ')}: {values.tolist()}.")
    if format == "multi_label_probabilities":
        if values.max() > 1:
            raise ValueError(f"Row {row} has probabilities above 1: {values.tolist()}.")
        yes, no = values + smoothing, 1 - values + smoothing
        if extreme := [label for label, p in zip(labels, np.minimum(yes, no), strict=True) if p == 0]:
            raise ValueError(
                f"Row {row} has a probability of exactly 0 or 1 for {extreme[0]!r}, whose logit is infinite: set "
                f"smoothing, such as smoothing=1e-6."
            )
        return np.log(yes) - np.log(no)
    if format == "probabilities" and abs(values.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"Row {row} has probabilities that sum to {values.sum():.6g}, not to 1: {values.tolist()}. For other "
            f"values, set format='logits', 'votes' or 'multi_label_probabilities'."
        )
    values = values + smoothing
    if values.min() == 0:
        what, example = ("no votes", "1.0") if format == "votes" else ("probability 0", "1e-6")
        raise ValueError(
            f"Row {row} has {what} for {labels[int(values.argmin())]!r}, and the logarithm of 0 is infinite: set "
            f"smoothing, such as smoothing={example}."
        )
    return np.log(values) - np.log(values.sum())


def _values_in_order(entry: Any, format: str, labels: list[str], row: int) -> Sequence[float]:
    """The numbers of an entry, in the order of `labels`."""
    if hasattr(entry, "tolist"):
        entry = entry.tolist()
    if isinstance(entry, Real) and not isinstance(entry, bool):
        entry = [entry]
    if isinstance(entry, Mapping):
        return _by_name(entry, labels, row)
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry):
        if all(isinstance(value, Mapping) and {"label", "score"} <= value.keys() for value in entry):
            return _by_name(_unique(((own["label"], own["score"]) for own in entry), row), labels, row)
        if format == "votes" and all(isinstance(value, str) for value in entry):
            counts = dict.fromkeys(labels, 0)
            for label in entry:
                if label not in counts:
                    raise ValueError(f"Row {row} has a vote for {label!r}, but labels is {labels}.")
                counts[label] += 1
            return list(counts.values())
        if all(isinstance(value, Real) and not isinstance(value, bool) for value in entry):
            if len(entry) != len(labels):
                raise ValueError(f"Row {row} has {len(entry)} values for {len(labels)} classes, {labels}.")
            return entry
    raise ValueError(
        f"Row {row} is {_shortened(entry)}, which is none of the shapes that format={format!r} takes: a list of "
        f"numbers, a dict of numbers by label, a list of dicts with 'label' and 'score', or a dict with 'labels' and "
        f"'scores'."
    )


def _by_name(entry: Mapping[str, Any], labels: list[str], row: int) -> list[float]:
    if {"labels", "scores"} <= entry.keys():  # a zero-shot pipeline, which also returns the text
        if len(entry["labels"]) != len(entry["scores"]):
            raise ValueError(f"Row {row} has {len(entry['labels'])} labels and {len(entry['scores'])} scores.")
        entry = _unique(zip(entry["labels"], entry["scores"], strict=True), row)
    if missing := [label for label in labels if entry.get(label) is None]:
        raise ValueError(
            f"Row {row} has no class {missing[0]!r}, only {', '.join(map(repr, entry))}: a pipeline returns all "
            f"classes with top_k=None."
        )
    if unknown := [label for label in entry if label not in labels]:
        raise ValueError(f"Row {row} has a class {unknown[0]!r}, but labels is {labels}.")
    wrong = [label for label in labels if isinstance(entry[label], bool) or not isinstance(entry[label], Real)]
    if wrong:
        raise ValueError(f"Row {row} has {_shortened(entry[wrong[0]])} for {wrong[0]!r}, which is not a number.")
    return [entry[label] for label in labels]


def _unique(pairs: Iterable[tuple[str, Any]], row: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for label, value in pairs:
        if label in values:
            raise ValueError(f"Row {row} has the class {label!r} twice.")
        values[label] = value
    return values


def _shortened(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 80 else f"{text[:80]}..."
