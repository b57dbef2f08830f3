"""Words for the faulty rows and values that errors name."""

from collections.abc import Iterable, Sequence

SHOWN = 5
"""Number of faulty rows that an error lists."""


def listed_rows(numbers: Sequence[int]) -> str:
    """`row 7`, or `8 rows: 1, 2, 3, 4, 5 and more`."""
    return f"row {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} rows: {listed(numbers)}"


def listed(values: Iterable[object]) -> str:
    """The first values, separated by commas."""
    values = list(values)
    return ", ".join(map(str, values[:SHOWN])) + (" and more" if len(values) > SHOWN else "")


def short(value: object) -> str:
    """The first characters of a value."""
    return text if len(text := repr(value)) <= 40 else f"{text[:40]}..."
