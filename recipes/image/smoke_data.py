"""Writes small data for a first try: handwritten digits as PNG files, in a folder per digit.

    python recipes/image/smoke_data.py [FOLDER]

The 1,797 images of 8 x 8 pixels come with scikit-learn (`sklearn.datasets.load_digits`). They are the test set of the
Optical Recognition of Handwritten Digits data set of the UCI Machine Learning Repository (Alpaydin and Kaynak, 1998,
https://doi.org/10.24432/C50P49), under the licence CC BY 4.0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
EVERY = 5
"""Every fifth image is for the test."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("."), help="for the folders train and test")
    folder = parser.parse_args(argv).folder
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        of_class = Path(folder, "train" if number % EVERY else "test", NAMES[digit])
        of_class.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        grey.save(of_class / f"{number:04}.png")


if __name__ == "__main__":
    main()
