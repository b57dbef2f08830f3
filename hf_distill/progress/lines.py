"""A bar in a terminal, and a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows on stderr how much of some work is done and the time left.

    In a terminal it is a bar. Elsewhere it is one line at most every 10 seconds, and one at the end:

        Measuring: 24 of 110 bursts, 0:36 left
        Measuring: 110 of 110 bursts in 0:46

    Args:
        description: what is done, such as `"Measuring"`.
        total: how many steps there are.
        unit: what a step is, in the plural.
        only_if_long: elsewhere than in a terminal, show nothing of work that takes less than 10 seconds.
        disable: show nothing at all, for instance in all processes but one.

    Example:
        >>> with Progress("Measuring", total=3, unit="models") as progress:
        ...     for model in models:
        ...         measure(model)
        ...         progress.update()
    """

    def __init__(
        self, description: str, total: int, unit: str = "steps", only_if_long: bool = False, disable: bool = False
    ):
        self.description, self.total, self.unit = description, total, unit
        self.only_if_long, self.disable = only_if_long, disable
        self.done = 0
        self._started = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty() and not disable:
            options = {"dynamic_ncols": True, "leave": not only_if_long, "delay": 0, "mininterval": 0.1}
            self._bar = tqdm(total=total, desc=description, unit=f" {unit}", file=sys.stderr, **options)

    def update(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self.done < self.total and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self.write(f"{self.description}: {self.done:,} of {self.total:,} {self.unit}, {self.time_left()} left")

    def write(self, line: str) -> None:
        """Shows a line of your own, above the bar if there is one."""
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif not self.disable:
            print(line, file=sys.stderr, flush=True)

    def time_left(self) -> str:
        """As in `0:36`, if the other steps take as long as those that are done."""
        seconds = time.monotonic() - self._started
        return as_time(seconds / self.done * (self.total - self.done)) if self.done else "unknown time"

    def close(self) -> None:
        """Ends the bar, or shows the last line."""
        seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.close()
        elif not self.only_if_long or seconds >= SECONDS_BETWEEN_LINES:
            self.write(f"{self.description}: {self.done:,} of {self.total:,} {self.unit} in {as_time(seconds)}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(items: Collection[T], description: str, unit: str = "steps", only_if_long: bool = False) -> Iterator[T]:
    """Gives items one by one and shows `Progress`.

    Example:
        >>> for batch in track(batches, "Evaluating", unit="batches"):
        ...     evaluate(batch)
    """
    with Progress(description, len(items), unit, only_if_long) as progress:
        for item in items:
            yield item
            progress.update()


def as_time(seconds: float) -> str:
    """Minutes and seconds as in `0:36`, with hours as in `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
