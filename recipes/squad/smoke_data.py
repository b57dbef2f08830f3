"""Writes small data for a first try: questions about Python's documentation, made by a rule.

    python recipes/squad/smoke_data.py [FOLDER]

The contexts are parts of `pydoc_data.topics`, a module of every Python (Python Software Foundation License, version 2).
The rule takes a sentence with a quoted term, such as "TypeError". The term is the answer, and the question has "what"
in its place and lacks some of the other words. About one question in five is asked of another part of the
documentation, and so has no answer. `train.json` and `test.json` have the format of SQuAD 2.0. They are about different
topics.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

TERM = re.compile(r'"([A-Za-z_][\w.()]*)"')
KEPT = 0.7
"""Share of the words of a sentence that its question keeps."""

UNANSWERABLE = 4
"""One question in four, chosen at random, has no answer."""

NUM_WORDS = 120
"""Approximate number of words of a context."""

EVERY = 4
"""Every fourth topic is for the test."""


def contexts_of(topic: str, seen: set[str]) -> list[str]:
    """The prose of a topic, in parts of whole paragraphs, without those that earlier topics have."""
    parts: list[str] = [""]
    for paragraph in topic.split("\n\n"):
        text = re.sub(r"\s+", " ", paragraph).strip()
        if text.endswith((".", ":")) and text not in seen and not re.search(r"[|>*=]{2}", text):
            seen.add(text)
            parts[-1] = f"{parts[-1]} {text}".strip()
            if len(parts[-1].split()) > NUM_WORDS:
                parts.append("")
    return [part for part in parts if part]


def questions_of(context: str, generator: random.Random) -> Iterator[dict[str, Any]]:
    """Questions about sentences with quoted terms, with the answer and its position."""
    start = 0
    for sentence in re.split(r"(?<=[.:]) (?=[A-Z])", context):
        terms = list(TERM.finditer(sentence))
        if terms and 8 <= len(sentence.split()) <= 30:
            term = generator.choice(terms)
            words = f"{sentence[: term.start()]} what {sentence[term.end() :]}".rstrip(".:").split()
            kept = [word for word in words if word == "what" or generator.random() < KEPT]
            yield {
                "question": f"{' '.join(kept)}?",
                "answers": [{"text": term[1], "answer_start": start + term.start(1)}],
            }
        start += len(sentence) + 1


def squad() -> dict[str, dict[str, Any]]:
    """`train` and `test` in the format of SQuAD 2.0."""
    parts: dict[str, list] = {"train": [], "test": []}
    generator, seen = random.Random(0), set[str]()
    for number, (title, topic) in enumerate(sorted(topics.items())):
        contexts = contexts_of(topic, seen)
        paragraphs: list[dict[str, Any]] = [{"context": context, "qas": []} for context in contexts]
        for index, context in enumerate(contexts):
            for question in questions_of(context, generator):
                place = index
                if generator.randrange(UNANSWERABLE) == 0 and len(contexts) > 1:
                    place = (index + generator.randrange(1, len(contexts))) % len(contexts)
                    question["answers"] = []
                question |= {"id": f"{title} {index} {len(paragraphs[place]['qas'])}"}
                paragraphs[place]["qas"].append(question | {"is_impossible": not question["answers"]})
        paragraphs = [paragraph for paragraph in paragraphs if paragraph["qas"]]
        if paragraphs:
            parts["test" if number % EVERY == 0 else "train"].append({"title": title, "paragraphs": paragraphs})
    return {part: {"version": "v2.0", "data": articles} for part, articles in parts.items()}


def write_data(folder: Path) -> None:
    """Writes `train.json` and `test.json` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in squad().items():
        Path(folder, f"{part}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python recipes/squad/smoke_data.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="folder for train.json and test.json")
    write_data(parser.parse_args().folder)


if __name__ == "__main__":
    main()
