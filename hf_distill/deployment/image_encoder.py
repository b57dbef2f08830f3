"""Turns images into arrays with NumPy and Pillow alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hf_distill.deployment.file_encoder import FileEncoder
from hf_distill.images import ImageReader, open_image

PIXELS_PER_TOKEN = 16 * 16
"""How many pixels count as a token, where inputs are counted in tokens: the patch of most vision transformers."""


@dataclass(frozen=True)
class EncodedImage:
    """The pixels that a model reads of an image, `[channels, height, width]`."""

    pixels: np.ndarray
    overflowing: ClassVar[bool] = False

    @property
    def ids(self) -> bytes:
        """What only equal images share."""
        return self.pixels.tobytes()

    def __len__(self) -> int:
        return max(1, self.pixels.shape[-2] * self.pixels.shape[-1] // PIXELS_PER_TOKEN)


@dataclass
class ImageEncoder(FileEncoder):
    """Turns images into model inputs: file names, bytes, images of Pillow, or uint8 arrays `[height, width, 3]`.

    Args:
        reader: prepares images.
        inputs: names of the model's inputs.
    """

    noun = "image"
    part = 256  # in uint8, 256 images of 224 x 224 pixels take 39 MB

    reader: ImageReader
    inputs: list[str] = field(default_factory=lambda: ["pixel_values"])

    def blank(self) -> np.ndarray:
        return np.zeros((64, 64), np.uint8)

    def prepare(self, file: Any) -> EncodedImage:
        return EncodedImage(self.reader.pixels(open_image(file, self.reader.mode)))

    def pad(self, encodings: Sequence[EncodedImage]) -> dict[str, np.ndarray]:
        """Makes one batch: `[images, channels, height, width]` in fp32."""
        return {self.inputs[0]: self.reader.values(np.stack([encoding.pixels for encoding in encodings]))}
