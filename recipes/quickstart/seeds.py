"""`python -m recipes.quickstart.seeds`: what labels and a teacher give a student, over several seeds."""

import argparse
import sys
from pathlib import Path

from recipes.quickstart.start import start

OUTPUT = Path("outputs/quickstart-seeds")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart.seeds", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for models and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run for each (default: 0 1 2)")
    options = parser.parse_args()
    return start("recipes.quickstart.students", options.output, seeds=options.seeds)


if __name__ == "__main__":
    sys.exit(main())
