"""Writes small data for a first try: paragraphs of Python's documentation, with entities that a rule finds.

    python recipes/ner/smoke_data.py [FOLDER]

The paragraphs are from `pydoc_data.topics`, a module of every Python (Python Software Foundation License, version 2).
The rule finds names of special methods (`__init__`), numbers of enhancement proposals (`PEP 484`) and versions
(`3.11`).
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

ENTITIES = {"METHOD": r"__\w+__", "PEP": r"PEP \d+", "VERSION": r"(?<=version )\d+\.\d+(\.\d+)?|(?<=Python )\d(\.\d+)*"}
EVERY = 5
"""Every fifth paragraph is for the test."""


def paragraphs() -> list[str]:
    """Paragraphs of 60 to 300 characters, each once: all that have entities, and as many others."""
    parts = [re.sub(r"\s+", " ", part).strip() for topic in topics.values() for part in topic.split("\n\n")]
    texts = [text for text in dict.fromkeys(parts) if 60 < len(text) < 300]
    with_entities = [text for text in texts if entities_of(text)]
    others = [text for text in texts if not entities_of(text)][: len(with_entities)]
    return [text for pair in zip(with_entities, others, strict=True) for text in pair]


def entities_of(text: str) -> list[dict[str, Any]]:
    """The entities of a text, as spans in characters."""
    return [
        {"start": match.start(), "end": match.end(), "label": label}
        for label, pattern in ENTITIES.items()
        for match in re.finditer(pattern, text)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("."), help="for train.jsonl and test.jsonl")
    folder = parser.parse_args(argv).folder
    rows = [json.dumps({"text": text, "entities": entities_of(text)}) for text in paragraphs()]
    parts = {"test": rows[::EVERY], "train": [row for number, row in enumerate(rows) if number % EVERY]}
    folder.mkdir(parents=True, exist_ok=True)
    for part, own in parts.items():
        (folder / f"{part}.jsonl").write_text("\n".join(own) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
