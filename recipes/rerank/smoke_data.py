"""Writes small real data for the recipe, without a download: the documentation of installed packages.

    python -m recipes.rerank.smoke_data FOLDER

writes `train.jsonl` and `test.jsonl`, with the columns `query`, `positive` and `negative`. The query is the first
paragraph of the documentation of a function or class of NumPy, SciPy or scikit-learn, and the relevant document is the
beginning of the rest. The other documents belong to functions and classes of the same module. All three packages are
under the BSD 3-Clause License.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PACKAGES = ("numpy", "scipy", "sklearn")
NOT_READ = ("conftest", "f2py", "tests")

UNDERLINE = re.compile(r"\n *-{3,} *(?=\n)")
"""The line below the title of a section, such as Parameters."""
SIGNATURE = re.compile(r"\w+\(.*\)$")
"""The first line of the documentation of a function written in C."""

FEWEST_WORDS, MOST_WORDS = 20, 120
"""Length of a document."""
NUM_NEGATIVES = 15
"""Documents of a test query that are not relevant."""
TRAIN_NEGATIVES = 3
"""The same of a training query."""
TEST_SHARE = 0.2


def write_data(folder: Path, num_train: int | None = None, num_test: int | None = None) -> None:
    """Writes `train.jsonl` and `test.jsonl`, with at most these numbers of queries."""
    rows = read_queries()
    first = round(TEST_SHARE * len(rows))
    train = [{**row, "negative": row["negative"][:TRAIN_NEGATIVES]} for row in rows[first:][:num_train]]
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in {"train": train, "test": rows[:first][:num_test]}.items():
        lines = [f"{json.dumps(row)}\n" for row in own]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_queries() -> list[dict]:
    """Queries with their documents in random order, the same in every run with the same packages."""
    generator = random.Random(0)
    rows = []
    for described in read_documentation().values():
        for query, positive in described.items():
            others = [own for own in described.values() if own != positive]
            if len(others) >= NUM_NEGATIVES:
                rows.append({"query": query, "positive": positive, "negative": generator.sample(others, NUM_NEGATIVES)})
    generator.shuffle(rows)
    return rows


def read_documentation() -> dict[str, dict[str, str]]:
    """By module and first paragraph, what follows it. Paragraphs that several things have are read once."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    seen: set[str] = set()
    for module in _modules():
        for name, thing in sorted(vars(module).items()):
            if name.startswith("_") or not callable(thing):
                continue
            split = _split(inspect.getdoc(thing) or "")
            if split is not None and seen.isdisjoint(split):
                seen.update(split)
                found[module.__name__][split[0]] = split[1]
    return found


def _modules() -> Iterator[ModuleType]:
    """The public modules of the packages."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for own in pkgutil.iter_modules(package.__path__):
            if not own.name.startswith("_") and own.name not in NOT_READ:
                yield importlib.import_module(f"{name}.{own.name}")


def _split(documentation: str) -> tuple[str, str] | None:
    """The first paragraph, and the beginning of what follows it. None if one of them is too short."""
    paragraphs = [" ".join(own.split()) for own in UNDERLINE.sub("\n", documentation).split("\n\n")]
    query, *others = paragraphs[1:] if SIGNATURE.match(paragraphs[0]) and len(paragraphs) > 1 else paragraphs
    words = " ".join(others).split()[:MOST_WORDS]
    return (query, " ".join(words)) if len(query.split()) > 2 and len(words) >= FEWEST_WORDS else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.rerank.smoke_data", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for train.jsonl and test.jsonl")
    write_data(parser.parse_args().folder)


if __name__ == "__main__":
    main()
