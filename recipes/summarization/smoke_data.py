"""Writes small real data for the recipe, without a download: the documentation of installed packages.

    python -m recipes.summarization.smoke_data FOLDER

writes `train.jsonl` and `test.jsonl`, with the columns `source` and `target`. The target is the first paragraph of the
documentation of a function or class of NumPy, SciPy or scikit-learn, which says in a line what it does; the source is
the beginning of the rest. All three packages are under the BSD 3-Clause License.
"""

import argparse
import json
import random
from pathlib import Path

from recipes.rerank.smoke_data import read_documentation

TEST_SHARE = 0.1


def write_data(folder: Path, num_train: int | None = None, num_test: int | None = None) -> None:
    """Writes `train.jsonl` and `test.jsonl`, with at most these numbers of rows."""
    rows = read_rows()
    first = round(TEST_SHARE * len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in {"train": rows[first:][:num_train], "test": rows[:first][:num_test]}.items():
        lines = [f"{json.dumps(row)}\n" for row in own]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_rows() -> list[dict[str, str]]:
    """Sources and targets in random order, the same in every run with the same packages."""
    described = read_documentation().values()
    rows = [{"source": rest, "target": first} for own in described for first, rest in own.items()]
    random.Random(0).shuffle(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.summarization.smoke_data", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="folder for train.jsonl and test.jsonl")
    write_data(parser.parse_args().folder)


if __name__ == "__main__":
    main()
