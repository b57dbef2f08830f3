"""Files that are written whole or not at all, and the names that several rooms know them by."""

import json
from pathlib import Path
from typing import Any

MANIFEST = "export.json"
"""In the folder of an export: what it is."""


def write_whole(file: Path, text: str) -> None:
    """Writes text; a process that is killed meanwhile leaves what was there before."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def write_json(file: Path, value: object, ensure_ascii: bool = True) -> None:
    """Writes JSON for people and programs, as `write_whole` does.

    Args:
        file: in a folder that exists.
        value: what `json.dumps` takes.
        ensure_ascii: as in `json.dumps`; False where people read texts in it.
    """
    write_whole(file, json.dumps(value, indent=2, ensure_ascii=ensure_ascii) + "\n")


def read_json(file: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: if it is not there.
        ValueError: if it is not JSON.
    """
    return json.loads(file.read_bytes())
