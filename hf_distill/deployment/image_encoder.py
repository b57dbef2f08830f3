"""Turns images into arrays with NumPy and Pillow alone."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_distill.deployment.text_encoder import TextEncoder
from hf_distill.images import ImageReader, open_image

if TYPE_CHECKING:
    from hf_distill.images import ImageInput

PART = 256
"""Images that are decoded at a time. In uint8, 256 images of 224 x 224 pixels take 39 MB."""

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
class ImageEncoder:
    """Turns images into model inputs, with the methods of `TextEncoder`.

    Args:
        reader: prepares images.
        inputs: names of the model's inputs.
    """

    reader: ImageReader
    inputs: list[str] = field(default_factory=lambda: ["pixel_values"])

    # What readers of a `TextEncoder` ask for. An image has one size, and nothing of it is truncated.
    pad_token_id: ClassVar[int] = 0
    truncation: ClassVar[str] = "head"
    stride: ClassVar[None] = None
    prefix: ClassVar[str] = ""

    @cached_property
    def max_length(self) -> int:
        """Size of an image in tokens."""
        return len(self.encode([np.zeros((64, 64), np.uint8)])[0])

    def encode(self, images: Sequence[Any], first: int = 0) -> list[Any]:
        """Decodes and resizes images.

        Args:
            images: file names, bytes of files, images of Pillow, or uint8 arrays `[height, width, 3]`.
            first: number of the first image, for errors.

        Raises:
            ValueError: if one cannot be read; the message gives its index.
        """
        if isinstance(images, str | bytes):
            raise ValueError(f"images must be a list, but is one image: give [{images[:40]!r}].")
        return [self._encode(image, number) for number, image in enumerate(images, start=first)]

    def _encode(self, image: "ImageInput", number: int) -> EncodedImage:
        try:
            return EncodedImage(self.reader.pixels(open_image(image, self.reader.mode)))
        except ValueError as error:
            name = "" if isinstance(image, bytes) or not isinstance(image, str) else f" ({image})"
            raise ValueError(f"Image {number}{name} {error}.") from None

    def in_parts(self, images: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Encodes images in parts that fit into memory: the index of the first image, and the encoded images."""
        if isinstance(images, str | bytes):
            self.encode(images)  # raises
        for start in range(0, len(images), PART):
            yield start, self.encode(images[start : start + PART], start)

    def pad(self, encodings: Sequence[Any]) -> dict[str, np.ndarray]:
        """Makes one batch: `[images, channels, height, width]` in fp32."""
        return {self.inputs[0]: self.reader.values(np.stack([encoding.pixels for encoding in encodings]))}

    batches = staticmethod(TextEncoder.batches)


def to_json(image: "ImageInput") -> str | dict[str, str]:
    """An image as a value in JSON: a file name as it is, everything else as the bytes of a file in base64."""
    if isinstance(image, str):
        return image
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating):  # the samples of a recording
        return {"samples": base64.b64encode(image.astype(np.float32).tobytes()).decode()}
    if not isinstance(image, bytes):
        written = io.BytesIO()
        open_image(image).save(written, "PNG")
        image = written.getvalue()
    return {"base64": base64.b64encode(image).decode()}


def from_json(value: Any) -> Any:
    """The text, the pair of texts or the image of a value in JSON, which has no tuples and no bytes."""
    if isinstance(value, dict) and "samples" in value:
        return np.frombuffer(base64.b64decode(value["samples"]), np.float32)
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return tuple(value) if isinstance(value, list) else value
