"""Files that are there whole or not at all."""

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes text; a process that is killed meanwhile leaves what was there before."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
