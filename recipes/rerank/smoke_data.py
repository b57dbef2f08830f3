"""Real queries and documents without a download: the documentation of functions of installed packages.

The first sentence of a function's documentation is the query, and the rest of it is the relevant document. The other
documents are of functions in the same module, which are about similar things. The texts are those of NumPy, SciPy and
scikit-learn, all under the BSD 3-Clause License.

    python -m recipes.rerank.data FOLDER

writes `train.jsonl` and `test.jsonl`, whose rows have `query`, `positive` and `negatives`.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import random
import re
from collections import defaultdict
from pathlib import Path

PACKAGES = ("numpy", "scipy", "sklearn")
UNDERLINE = re.compile(r"\n *-{3,} *(?=\n)")
"""The line below the title of a section, such as Parameters."""
SIGNATURE = re.compile(r"\w+\(.*\)$")
"""The first line of the documentation of a function written in C."""

FEWEST_WORDS, MOST_WORDS = 20, 120
NUM_NEGATIVES = 15
TEST_SHARE = 0.2


def read_documentation() -> dict[str, dict[str, str]]:
    """By module, the description of each function by its first sentence. A text that is there twice is left out."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    seen: set[str] = set()
    for module in _modules():
        for name in sorted(vars(module)):
            thing = getattr(module, name)
            is_own = getattr(thing, "__module__", "").split(".")[0] in PACKAGES or type(thing).__name__ == "ufunc"
            if name.startswith("_") or not is_own or not callable(thing):
                continue
            split = _split(inspect.getdoc(thing) or "")
            if split is not None and seen.isdisjoint(split):
                seen.update(split)
                found[module.__name__][split[0]] = split[1]
    return dict(found)


def make_rows(num_negatives: int = NUM_NEGATIVES, seed: int = 0) -> list[dict]:
    """Queries with their documents, in random order: the same in every run with the same packages."""
    generator = random.Random(seed)
    rows = []
    for described in read_documentation().values():
        for query, positive in described.items():
            others = sorted(set(described.values()) - {positive})
            if len(others) >= num_negatives:
                rows.append(
                    {"query": query, "positive": positive, "negatives": generator.sample(others, num_negatives)}
                )
    generator.shuffle(rows)
    return rows


def write(folder: Path, num_train: int | None = None, num_test: int | None = None, train_negatives: int = 3) -> None:
    """Writes `train.jsonl`, with a few negatives per query, and `test.jsonl`, with all of them."""
    rows = make_rows()
    first = round(len(rows) * TEST_SHARE)
    test, train = rows[:first][:num_test], rows[first:][:num_train]
    train = [{**row, "negatives": row["negatives"][:train_negatives]} for row in train]
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in {"train": train, "test": test}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own), encoding="utf-8")


def _modules() -> list:
    """The public modules of the packages."""
    modules = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        names = [own.name for own in pkgutil.iter_modules(package.__path__) if not own.name.startswith("_")]
        modules.append(package)
        for own in names:
            if own not in ("conftest", "tests", "f2py", "distutils"):
                modules.append(importlib.import_module(f"{name}.{own}"))
    return modules


def _split(documentation: str) -> tuple[str, str] | None:
    """The first sentence, and the beginning of what follows it. None if one of them is too short to be about anything."""
    paragraphs = [" ".join(own.split()) for own in UNDERLINE.sub("\n", documentation).split("\n\n")]
    if SIGNATURE.match(paragraphs[0]):
        paragraphs = paragraphs[1:]
    query, description = paragraphs[:1], " ".join(paragraphs[1:]).split()[:MOST_WORDS]
    if not query or len(query[0].split()) < 3 or len(description) < FEWEST_WORDS:
        return None
    return query[0], " ".join(description)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.rerank.data", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for train.jsonl and test.jsonl")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
