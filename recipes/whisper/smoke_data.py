"""Writes small data for the recipe, without a download: telephone numbers as dial tones.

    python -m recipes.whisper.smoke_data FOLDER

writes `train.jsonl` and `test.jsonl`, with the columns `audio` and `text`, and the recordings that they name. Each
digit is the pair of tones that a telephone sends for it (DTMF, ITU-T recommendation Q.23), with noise, pauses and
loudness at random. The transcript is the number, such as `4 0 7`. The tones are computed here: no licence applies.
"""

import argparse
import json
import wave
from pathlib import Path

import numpy as np

LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477)
"""Frequencies of the rows and columns of the keys, in hertz."""

ROWS = ("123", "456", "789", " 0 ")
KEYS = {key: (LOW[row], HIGH[column]) for row, keys in enumerate(ROWS) for column, key in enumerate(keys)}
NUM_TRAIN, NUM_TEST = 400, 40
RATE = 16_000


def dial(number: str, generator: np.random.Generator, rate: int = RATE) -> np.ndarray:
    """The tones of a number: `[samples]`, between -1 and 1."""
    parts = []
    for digit in number:
        time = np.arange(int(rate * generator.uniform(0.08, 0.15))) / rate
        tones = sum(np.sin(2 * np.pi * frequency * time) for frequency in KEYS[digit]) / 2
        pause = np.zeros(int(rate * generator.uniform(0.03, 0.08)))
        parts += [generator.uniform(0.3, 0.9) * tones, pause]
    samples = np.concatenate(parts)
    return np.clip(samples + generator.normal(0, 0.02, len(samples)), -1, 1)


def write_data(
    folder: Path, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, longest: int = 6, rate: int = RATE
) -> None:
    """Writes both tables and their recordings. Numbers have at most `longest` digits."""
    generator = np.random.default_rng(0)
    for part, number_of_rows in (("train", num_train), ("test", num_test)):
        recordings = folder / part
        recordings.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in range(number_of_rows):
            number = "".join(generator.choice([*"0123456789"], generator.integers(1, longest + 1)))
            _write(recordings / f"{row}.wav", dial(number, generator, rate), rate)
            lines.append(json.dumps({"audio": f"{part}/{row}.wav", "text": " ".join(number)}) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def _write(file: Path, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes((samples * 32767).astype("<i2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.whisper.smoke_data", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the tables and recordings")
    write_data(parser.parse_args().folder)


if __name__ == "__main__":
    main()
