"""Opens images, and turns them into inputs of a model with NumPy and Pillow alone.

Training, evaluation and predictions all use this file, so that they read the same pixels. It needs neither PyTorch nor
transformers. Pillow is imported where it is used.
"""

import io
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hf_distill.optional import optional

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageInput = str | Path | bytes | Image | np.ndarray
    """A file name, the bytes of a file, an image of Pillow, or an array `[height, width]` or `[height, width, 3]`."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of the files that are taken as images in a folder."""

MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded. Pillow warns above this number: a small file may hold a huge image."""


def open_image(image: "ImageInput", mode: str = "RGB") -> "Image":
    """Decodes an image in full, turns it upright as its EXIF data says, and converts it to a mode.

    Args:
        image: a file name, the bytes of a file, an image of Pillow, or an array `[height, width]` or
            `[height, width, 3]` of uint8.
        mode: `"RGB"`, or `"L"` for a model with one channel.

    Raises:
        ValueError: if it is not an image, is truncated, is too large, or has more than 8 bits per channel. The message
            continues a sentence that names the image, such as `is empty`.
        ImportError: if Pillow is missing.
    """
    pillow, operations = optional("PIL.Image", "images"), optional("PIL.ImageOps", "images")
    if isinstance(image, np.ndarray):
        opened = _from_array(image, pillow)
    elif isinstance(image, pillow.Image):
        opened = image
    elif isinstance(image, str | Path | bytes):
        opened = _from_file(image, pillow)
    else:
        raise ValueError(
            f"must be a file name, bytes, an image of Pillow or a NumPy array, but is {type(image).__name__}"
        )
    _check_size(opened)
    _load(opened)
    return operations.exif_transpose(opened).convert(mode)


def check_image(content: bytes) -> None:
    """Raises `ValueError` if `open_image` would. A JPEG is decoded at an eighth of its size, which takes less time."""
    opened = _from_file(content, optional("PIL.Image", "images"))
    _check_size(opened)
    opened.draft(None, (opened.width // 8, opened.height // 8))
    _load(opened)


def _check_size(opened: "Image") -> None:
    if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(
            f"has {opened.width} x {opened.height} pixels, more than the {MAX_PIXELS:,} that are decoded: resize it"
        )


def _load(opened: "Image") -> None:
    try:
        opened.load()
    except Exception as error:  # the decoders of Pillow raise many kinds of errors
        raise ValueError(f"is damaged or truncated ({error}): replace or remove it") from None
    if opened.mode.startswith(("I", "F")):
        raise ValueError(f"has {opened.mode} pixels, with more than 8 bits: save it with 8 bits per channel")


def _from_file(image: str | Path | bytes, pillow: Any) -> "Image":
    if isinstance(image, bytes):
        if not image:
            raise ValueError("is empty: replace or remove it")
        source: Any = io.BytesIO(image)
    else:
        source = Path(image)
        if not source.is_file():
            raise ValueError("is not a file: check the name")
        if not source.stat().st_size:
            raise ValueError("is empty: replace or remove it")
        source = io.BytesIO(source.read_bytes())  # Pillow would keep the file open
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which `open_image` refuses
            return pillow.open(source)
    except Exception as error:
        if isinstance(error, pillow.DecompressionBombError):
            raise ValueError(f"has more than the {MAX_PIXELS:,} pixels that are decoded: resize it") from None
        raise ValueError("is not an image of a format such as PNG, JPEG or WebP: replace or remove it") from None


def _from_array(array: np.ndarray, pillow: Any) -> "Image":
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise ValueError(
            f"is a {array.dtype} array {list(array.shape)}, but must be uint8 [height, width] or [height, width, 3]"
        )
    return pillow.fromarray(array)


class ImageReader(Protocol):
    """Turns images into model inputs in two steps, so that decoded images can wait in uint8."""

    @property
    def mode(self) -> str: ...

    def pixels(self, image: "Image") -> np.ndarray:
        """The pixels that a model reads of an image in `mode`, `[channels, height, width]`."""

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """The inputs of a model, in fp32, of any number of such pixels: `[..., channels, height, width]`."""


@dataclass(frozen=True)
class Preprocessing:
    """Resizes, crops and normalizes images like an image processor of transformers, with the same result bit for bit.

    Args:
        mode: mode of Pillow, `"RGB"` or `"L"`.
        resample: filter of Pillow that resizes, by its number.
        height, width: size to resize to; None to keep the aspect ratio.
        shortest_edge: length of the shorter side after resizing, with the same aspect ratio; None for a fixed size.
        crop: height and width of the part that is cut out of the middle; None for all.
        rescale: factor for the pixels, such as 1 / 255; None for none.
        mean, std: by channel, what is subtracted and what the difference is divided by; None for none.
        reverse_channels: blue, green, red instead of red, green, blue.

    Raises:
        ValueError: if images would keep different sizes.

    Example:
        >>> preprocessing = Preprocessing(height=224, width=224, resample=2, rescale=1 / 255)
        >>> preprocessing.values(preprocessing.pixels(open_image("cat.png"))).shape
        (3, 224, 224)
    """

    mode: str = "RGB"
    resample: int = 2
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    crop: tuple[int, int] | None = None
    rescale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    reverse_channels: bool = False

    def __post_init__(self):
        for name in ("crop", "mean", "std"):  # lists, if they were read from JSON
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.crop is None and (self.height is None or self.width is None):
            raise ValueError("Images would keep different sizes, but the images of a batch need one size.")

    def pixels(self, image: "Image") -> np.ndarray:
        """`[channels, height, width]` in uint8."""
        if size := self._size(image.height, image.width):
            image = image.resize((size[1], size[0]), self.resample)
        array = np.asarray(image)
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        if self.crop is not None:
            array = _cropped(array, *self.crop)
        return np.ascontiguousarray(array)

    def values(self, pixels: np.ndarray) -> np.ndarray:
        table = self._table
        values = np.stack([table[channel][pixels[..., channel, :, :]] for channel in range(len(table))], axis=-3)
        return values[..., ::-1, :, :].copy() if self.reverse_channels else values

    @cached_property
    def _table(self) -> np.ndarray:
        """The input for each of the 256 values of a pixel, by channel: `[channels, 256]`."""
        values = np.arange(256, dtype=np.float64)
        if self.rescale is not None:
            values = values * self.rescale
        table = np.tile(values.astype(np.float32), (len(self.mode), 1))
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(own, np.float32)[:, None] for own in (self.mean, self.std))
            table = (table - mean) / std
        return table

    def _size(self, height: int, width: int) -> tuple[int, int] | None:
        if self.shortest_edge is None:
            return None if self.height is None or self.width is None else (self.height, self.width)
        longer = int(self.shortest_edge * max(height, width) / min(height, width))
        return (longer, self.shortest_edge) if width <= height else (self.shortest_edge, longer)


def _cropped(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of `[channels, height, width]`, with zeros around an array that is too small."""
    rows, columns = (max(0, (size - own + 1) // 2) for size, own in zip((height, width), array.shape[1:], strict=True))
    if rows or columns:
        own_height, own_width = array.shape[1:]
        large = np.zeros((len(array), max(height, own_height), max(width, own_width)), array.dtype)
        large[:, rows : rows + own_height, columns : columns + own_width] = array
        array = large
    top, left = (array.shape[1] - height) // 2, (array.shape[2] - width) // 2
    return array[:, top : top + height, left : left + width]
