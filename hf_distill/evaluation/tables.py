"""Tables and paragraphs that read well as Markdown and in a terminal of 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 80
"""In characters."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table with aligned columns: the first to the left, the others to the right.

    Args:
        header: column titles.
        rows: `[rows][columns]`; `|` and line breaks are escaped.
    """
    cells = [[_escape(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in [cells[0], rule, *cells[1:]])


def models_table(models: Sequence[str], figures: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table with a column for each model and a row for each figure.

    Where it would be wider than 80 characters, the other models follow in a second table.

    Args:
        models: their names.
        figures: `[models]` by the name of each figure.
    """
    tables, start = [], 0
    while start < len(models):
        for end in range(len(models), start, -1):
            table = markdown_table(
                ["", *models[start:end]], [[name, *cells[start:end]] for name, cells in figures.items()]
            )
            if end == start + 1 or len(table.partition("\n")[0]) <= WIDTH:
                break
        tables.append(table)
        start = end
    return "\n\n".join(tables)


def paragraph(text: str) -> str:
    """Text in lines of at most 80 characters, between words."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
