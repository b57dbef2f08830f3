"""Schedules: a temperature or a weight that changes during the training, as a function of the training's progress."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

EXAMPLES = "'linear:4->1', 'cosine:4->1@0.1-0.6' or 'piecewise:0=4,0.5=2,0.9=1'"

NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
BETWEEN_TWO = re.compile(rf"(linear|cosine):{NUMBER}->{NUMBER}(?:@{NUMBER}-{NUMBER})?")
PIECEWISE = re.compile(rf"piecewise:{NUMBER}={NUMBER}(?:,{NUMBER}={NUMBER})+")
POINT = re.compile(rf"{NUMBER}={NUMBER}")

END = 1.0
"""The progress at the end of a training. Evaluations use the values of this moment."""

MOMENTS = [moment / 1000 for moment in range(1001)]
"""The moments at which a schedule is checked before the training."""


@dataclass(frozen=True)
class Interpolation:
    """A curve through points. Before the first and after the last point it is constant.

    Args:
        points: pairs of a position, a share of the training from 0 to 1, and the value there. Two points at the same
            position are a jump.
        is_cosine: follow half a cosine between two points instead of a straight line.

    Example:
        >>> Interpolation(((0.0, 4.0), (1.0, 1.0)))(0.5)
        2.5
    """

    points: tuple[tuple[float, float], ...]
    is_cosine: bool = False

    def __call__(self, progress: float) -> float:
        if progress < self.points[0][0]:
            return self.points[0][1]
        for (begin, first), (end, last) in pairwise(self.points):
            if progress < end:
                share = (progress - begin) / (end - begin)
                share = (1 - math.cos(math.pi * share)) / 2 if self.is_cosine else share
                return first + (last - first) * share
        return self.points[-1][1]


@dataclass(frozen=True, repr=False)
class Schedule:
    """A value as a function of the training's progress.

    It is pickled and copied to JSON as its text, so saved arguments contain no code.

    Attributes:
        text: the notation, or the name of a function.
        function: takes the progress, from 0 before the first step to 1 after the last, and returns the value.
    """

    text: str
    function: Callable[[float], float]

    @classmethod
    def of_function(cls, function: Callable[[float], float]) -> "Schedule":
        """The schedule of a Python function, with its name as the text."""
        named = function if hasattr(function, "__qualname__") else type(function)
        return cls(f"function {named.__module__}.{named.__qualname__}", function)

    def at(self, progress: float) -> float:
        """The value at a moment of the training.

        Raises:
            ValueError: if a function returns something else than a finite number.
        """
        value: Any = self.function(progress)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{self.text} returned {value!r} at {progress:g}, which should be a finite number.")
        return number

    @property
    def moments(self) -> list[float]:
        """The moments at which the schedule is checked."""
        return [*MOMENTS, *(position for position, _ in getattr(self.function, "points", ()))]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        values = [value for _, value in getattr(self.function, "points", ())] or [self.at(own) for own in MOMENTS]
        return min(values), max(values)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return repr(self.text)

    def __copy__(self) -> "Schedule":
        return self

    def __deepcopy__(self, memo: dict) -> "Schedule":
        return self

    def __reduce__(self) -> tuple:
        return str, (self.text,)


Value = float | Schedule
"""A temperature or a weight: fixed, or as it changes during the training."""


def number_or_text(word: str) -> float | str:
    """Reads a number or the notation of a schedule from a word of the command line."""
    try:
        return float(word)
    except ValueError:
        return word


if TYPE_CHECKING:
    Scheduled = float | str | Schedule | Callable[[float], float]
else:
    # HfArgumentParser passes the type of a field to argparse, which calls it with the word of the command line.
    Scheduled = number_or_text
"""The type of an argument that is a number, the notation of a schedule, or a function of the progress."""


def parse_schedule(value: object) -> Value:
    """Returns a number unchanged, and the `Schedule` of a notation or a function.

    Args:
        value: a number; `"linear:4->1"` or `"cosine:4->1"`, with `@begin-end` if the value is constant before and after
            these shares of the training; `"piecewise:0=4,0.5=2,0.9=1"`, straight lines between values at shares of the
            training; or a function from the progress, between 0 and 1, to the value.

    Raises:
        TypeError: if it is none of these.
        ValueError: if a notation cannot be read. Both messages are the end of a sentence about the value.

    Example:
        >>> parse_schedule("linear:4->1").at(0.5)
        2.5
    """
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return Schedule.of_function(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"should be a finite number, or a schedule such as {EXAMPLES}.")
    return value


@lru_cache
def _parse(text: str) -> Schedule:
    notation = text.replace(" ", "").lower()
    points: tuple[tuple[float, float], ...]
    if between := BETWEEN_TWO.fullmatch(notation):
        shape, first, last, begin, end = between.groups()
        points = ((float(begin or 0), float(first)), (float(end or 1), float(last)))
    elif PIECEWISE.fullmatch(notation):
        shape = "piecewise"
        points = tuple((float(position), float(value)) for position, value in POINT.findall(notation))
    elif isinstance(number_or_text(text), float):
        raise TypeError("should be a finite number, not a text (YAML reads 1e-1 as a string: write 1.0e-1).")
    else:
        raise ValueError(
            f"should be a finite number, or a schedule such as {EXAMPLES}. In a shell, put a schedule in quotes."
        )
    positions = [position for position, _ in points]
    if outside := [position for position in positions if not 0 <= position <= 1]:
        raise ValueError(
            f"has the position {outside[0]:g}, which should be a share of the training, from 0 to 1. To change at a "
            f"step, divide it by the number of steps."
        )
    for before, after in pairwise(positions):
        if after < before:
            raise ValueError(f"ends before it begins: {after:g} should not be less than {before:g}.")
        if after == before and shape != "piecewise":
            raise ValueError(f"begins and ends at {before:g}: write a jump as 'piecewise:{after:g}=4,{after:g}=1'.")
    return Schedule(notation, Interpolation(points, shape == "cosine"))


def value_at(value: Value, progress: float) -> float:
    """The value at a moment of the training, from 0 before the first step to 1 after the last."""
    return value.at(progress) if isinstance(value, Schedule) else value


def is_on(weight: Value) -> bool:
    """Whether a loss with this weight is ever computed."""
    return isinstance(weight, Schedule) or weight > 0


def check_weight(weight: Value) -> None:
    """Checks that a weight is never negative.

    Raises:
        ValueError: if it is negative at some moment, or scheduled and always 0. The message is the end of a sentence.
    """
    if not isinstance(weight, Schedule):
        if weight < 0:
            raise ValueError("should be 0 (off) or above.")
        return
    lowest, highest = weight.range
    if lowest < 0:
        raise ValueError(f"reaches {lowest:g}, but should be 0 or above during the whole training.")
    if highest == 0:
        raise ValueError("is 0 during the whole training: write 0.")


def check_temperature(temperature: Value) -> None:
    """Checks that a temperature is always above 0.

    Raises:
        ValueError: if it is 0 or below at some moment. The message is the end of a sentence.
    """
    if not isinstance(temperature, Schedule):
        if temperature <= 0:
            raise ValueError("should be above 0; 2.0 is usual.")
    elif (lowest := temperature.range[0]) <= 0:
        raise ValueError(f"reaches {lowest:g}, but should be above 0 during the whole training.")


def check_some_is_on(weights: Mapping[str, Value]) -> None:
    """Checks that at least one loss is on at every moment of the training.

    Args:
        weights: by the name that the error shows, such as `alpha_kl`.

    Raises:
        ValueError: if all weights are 0 at the same moment.
    """
    schedules: Iterable[Schedule] = [weight for weight in weights.values() if isinstance(weight, Schedule)]
    for moment in sorted({0.0, *(moment for schedule in schedules for moment in schedule.moments)}):
        if not any(value_at(weight, moment) for weight in weights.values()):
            when = f" at {moment:.1%} of the training" if schedules else ""
            said = ", ".join(f"{name}={weight!r}" for name, weight in weights.items())
            raise ValueError(f"{said} turn all losses off{when}: set at least one above 0.")
