"""Default images for comparing models: smooth colours, stripes, discs and noise, in several sizes."""

import numpy as np

SIZES = ((240, 320), (320, 240), (224, 224), (64, 48), (500, 375), (33, 200))
NUM_IMAGES = 24


def make_images() -> list[np.ndarray]:
    """Images `[height, width, 3]` in uint8, the same in every call."""
    generator = np.random.default_rng(0)
    return [_image(generator, number) for number in range(NUM_IMAGES)]


def _image(generator: np.random.Generator, number: int) -> np.ndarray:
    height, width = SIZES[number % len(SIZES)]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    first, second = generator.random((2, 3))
    angle, frequency = generator.uniform(0, np.pi), generator.uniform(2, 20)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    mask = {
        0: (along + 1) / 2,
        1: (np.sin(frequency * along) + 1) / 2,
        2: (np.hypot(rows - 0.3, columns + 0.2) < generator.uniform(0.2, 0.8)).astype(float),
        3: generator.random((height, width)),
    }[number % 4].clip(0, 1)[..., None]
    colours = first * mask + second * (1 - mask) + generator.normal(0, 0.03, (height, width, 3))
    return (255 * colours.clip(0, 1)).astype(np.uint8)
