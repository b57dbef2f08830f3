"""Writes files atomically, and names the files that several packages share."""

import json
from pathlib import Path
from typing import Any

MANIFEST = "export.json"
"""File in the folder of an export that describes the export."""

MODULES = "modules.json"
"""File in the folder of a `SentenceTransformer` that lists its modules. Each has a folder, except the first."""


def write_whole(file: Path, text: str) -> None:
    """Writes text atomically: if the process is killed, the old file stays."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def write_json(file: Path, value: object, ensure_ascii: bool = True) -> None:
    """Writes indented JSON atomically.

    Args:
        file: output file, in an existing folder.
        value: any value that `json.dumps` accepts.
        ensure_ascii: as in `json.dumps`; False if people read texts in the file.
    """
    write_whole(file, json.dumps(value, indent=2, ensure_ascii=ensure_ascii) + "\n")


def read_json(file: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not JSON.
    """
    return json.loads(file.read_bytes())
