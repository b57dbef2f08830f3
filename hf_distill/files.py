"""Files that are there whole or not at all, and the names that several rooms know them by."""

from pathlib import Path

MANIFEST = "export.json"
"""In the folder of an export: what it is."""


def write_whole(file: Path, text: str) -> None:
    """Writes text; a process that is killed meanwhile leaves what was there before."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
