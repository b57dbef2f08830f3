"""How much of the teacher's quality a model keeps, and how sure that is."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from hf_distill.evaluation.report import Metric
from hf_distill.optional import optional
from hf_distill.tasks.task import Reading, Task

DRAWS = 1000
"""Resamples of the bootstrap."""

CONFIDENCE = 0.95
Z = 1.96
"""Half of the width of a 95% interval, in standard errors."""

POWER_Z = 0.84
"""Standard errors above a bound that give a chance of 80% to be above it in another sample."""

CORRELATED = 0.6
"""Assumed standard error of the share kept by a good student, relative to that of the teacher's own metric.

Both are measured on the same rows and mostly right on the same ones. A student that is right and wrong on other rows
than its teacher in 5 of 100 cases has about this one at an accuracy of 85%.
"""


@dataclass(frozen=True)
class Kept:
    """The share of the teacher's quality that a model keeps.

    Attributes:
        share: the share on all rows.
        low: lower bound of its 95% interval, from a bootstrap over the rows.
        high: upper bound.
        units: number of rows, or of what is measured together, such as pairs.
        value: the model's metric.
        teacher_value: the teacher's metric.
    """

    share: float
    low: float
    high: float
    units: int
    value: float
    teacher_value: float

    @property
    def error(self) -> float:
        """The standard error of the share: its distance from the lower bound, divided by 1.96."""
        return (self.share - self.low) / Z

    def margin(self, keep: float, test_units: int) -> float:
        """How far above what `keep` asks for the share is; below 0 if it is too low.

        The lower bound of the interval on `test_units` other rows should be at least `keep`, in four of five samples.
        """
        on_test = self.error * math.sqrt(self.units / test_units)
        return self.share - Z * on_test - POWER_Z * math.hypot(self.error, on_test) - keep

    def words(self) -> str:
        """As in `97.9% [96.5, 99.2]`."""
        return f"{self.share:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Judge:
    """Compares predictions for some rows with the teacher's.

    Attributes:
        task: the task.
        metric: name of a metric of its quality or fidelity.
        rows: the rows with their labels.
        reading: how they are read.
        teacher: the teacher's predictions.

    Example:
        >>> Judge(task, "accuracy", rows, reading, teacher_predictions).kept(predictions).low
        0.965
    """

    task: Task
    metric: str
    rows: Dataset
    reading: Reading
    teacher: Sequence[Any]

    def kept(self, predictions: Sequence[Any]) -> Kept:
        """The share of the teacher's metric that these predictions keep, with its interval.

        The bootstrap draws rows with replacement, the same ones for both models, and takes percentiles of the share
        (Efron and Tibshirani, 1993, chapter 13). Of a metric where less is better, the share is the teacher's value
        divided by the model's.
        """
        own, teacher = self._on_draws(predictions), self._teacher_on_draws
        units = np.arange(len(self.units()))
        low, high = (
            optional("scipy.stats", "evaluation")
            .bootstrap(
                (units,),
                lambda drawn: self._share(own(drawn), teacher(drawn)),
                n_resamples=DRAWS,
                confidence_level=CONFIDENCE,
                vectorized=False,
                method="percentile",
                rng=np.random.default_rng(0),
            )
            .confidence_interval
        )
        value, teacher_value = own(units), teacher(units)
        return Kept(
            self._share(value, teacher_value), float(low), float(high), len(units), float(value), float(teacher_value)
        )

    def teacher_error(self) -> float:
        """The standard error of the teacher's metric on these rows, relative to its value."""
        on_draws, units = self._on_draws(self.teacher), np.arange(len(self.units()))
        result = optional("scipy.stats", "evaluation").bootstrap(
            (units,),
            on_draws,
            n_resamples=DRAWS // 5,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        return float(result.standard_error) / abs(on_draws(units))

    def part(self, number: int) -> "Judge":
        """A judge of about this many units, evenly spaced; of all if units depend on each other, as documents do."""
        units = self.units()
        if units.size < len(self.rows):
            return self
        rows = units[:: max(1, len(units) // number)].T.ravel()
        return dataclasses.replace(self, rows=self.rows.select(rows), teacher=[self.teacher[row] for row in rows])

    def units(self) -> np.ndarray:
        """The rows of each unit that is drawn, `[units, rows]`."""
        return self.task.units(self.rows)

    def share(self, predictions: Sequence[Any]) -> float:
        """The share of the teacher's metric, without its interval."""
        return self._share(self.measure(predictions), self.measure(self.teacher))

    def how_shown(self) -> Metric:
        return {**self.task.fidelity, **self.task.quality}[self.metric]

    def _scores(self, predictions: Sequence[Any]) -> np.ndarray | None:
        return self.task.scores_of_units(self.metric, predictions, self.rows, self.reading, self.teacher)

    def _on_draws(self, predictions: Sequence[Any]) -> Callable[[np.ndarray], float]:
        """A function that computes the metric on some units, by index."""
        scores = self._scores(predictions)
        if scores is not None and scores.ndim == 2:
            return lambda drawn: _ratio(scores[drawn].sum(0))
        if scores is not None:
            return lambda drawn: scores[drawn].mean()
        units = self.units()

        def measure(drawn: np.ndarray) -> float:
            rows = units[drawn].T.ravel()  # the first rows of all units, then their second rows
            return self.measure([predictions[row] for row in rows], rows)

        return measure

    @cached_property
    def _teacher_on_draws(self) -> Callable[[np.ndarray], float]:
        """As `_on_draws` of the teacher, computed once for each draw: all models have the same draws."""
        measure, values = self._on_draws(self.teacher), {}

        def remembered(drawn: np.ndarray) -> float:
            key = drawn.tobytes()
            if key not in values:
                values[key] = measure(drawn)
            return values[key]

        return remembered

    def measure(self, predictions: Sequence[Any], rows: Sequence[int] | None = None) -> float:
        """The metric of predictions for all rows, or for some of them by index.

        Raises:
            ValueError: if the data does not give this metric.
        """
        own = self.rows if rows is None else self.rows.select(rows)
        teacher = self.teacher if rows is None else [self.teacher[row] for row in rows]
        of_labels = self.metric in self.task.quality
        found = self.task.metrics(predictions, own if of_labels else None, self.reading, None if of_labels else teacher)
        if self.metric not in found:
            raise ValueError(
                f"metric={self.metric!r} cannot be measured on this data, which gives {', '.join(found) or 'none'}: "
                f"use one of those, or other data."
            )
        return found[self.metric]

    def _share(self, value: float, teacher_value: float) -> float:
        share = value / teacher_value if self.how_shown().higher_is_better else teacher_value / value
        return float(share)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def units_needed(keep: float, relative_error: float, units: int) -> int:
    """How many rows it takes to show that a student keeps a share, even if it loses nothing.

    Args:
        keep: the share.
        relative_error: standard error of the teacher's metric, relative to its value.
        units: number of rows that it was measured on.
    """
    return math.ceil(units * (Z * CORRELATED * relative_error / (1 - keep)) ** 2)
