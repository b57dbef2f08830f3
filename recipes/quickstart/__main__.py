"""`python -m recipes.quickstart`: fine-tune a teacher, distil a student, export it to int8, and compare the three."""

import argparse
import sys
from pathlib import Path

from recipes.quickstart.start import start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for models and results")
    options = parser.parse_args()
    return start("recipes.quickstart.job", options.output)


if __name__ == "__main__":
    sys.exit(main())
