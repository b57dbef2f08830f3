"""Default recordings for comparing models: tones, sweeps, clicks and noise, of different lengths."""

import numpy as np

RATE = 16000
SECONDS = (0.3, 1.0, 2.5, 0.7)
NUM_SOUNDS = 16


def make_sounds() -> list[np.ndarray]:
    """Recordings `[samples]` in fp32, the same in every call."""
    generator = np.random.default_rng(0)
    return [_sound(generator, number) for number in range(NUM_SOUNDS)]


def _sound(generator: np.random.Generator, number: int) -> np.ndarray:
    time = np.arange(int(RATE * SECONDS[number // 4 % len(SECONDS)])) / RATE
    low, high = np.sort(generator.uniform(100, 4000, 2))
    sound = {
        0: np.sin(2 * np.pi * low * time),
        1: np.sin(2 * np.pi * (low + (high - low) * time / time[-1] / 2) * time),
        2: np.sign(np.sin(2 * np.pi * low / 20 * time)) * np.exp(-5 * (time % 0.2)),
        3: generator.normal(0, 0.5, len(time)),
    }[number % 4]
    return (0.3 * sound + generator.normal(0, 0.01, len(time))).astype(np.float32)
