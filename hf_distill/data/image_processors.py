"""Finds out how an image processor of transformers prepares images."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoImageProcessor, PreTrainedConfig

from hf_distill.images import ImageReader, Preprocessing, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
"""Mode of Pillow by the number of channels of a model."""


def load_image_processor(name: str) -> Any:
    """Loads the image processor of a model, in the version that uses Pillow.

    The versions that use torchvision resize with slightly different results, which an export without PyTorch could not
    repeat.

    Raises:
        ValueError: if the model has none.
    """
    try:
        return AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} has no image processor (preprocessor_config.json): {error}") from error


def image_reader(processor: Any) -> ImageReader:
    """What prepares images as the processor does: `Preprocessing` if that can, else the processor itself."""
    try:
        return preprocessing_of(processor)
    except ValueError:
        return ProcessorReader(processor, mode_of(processor))


def preprocessing_of(processor: Any) -> Preprocessing:
    """Describes an image processor, and checks that the description gives the same result on a few images.

    Raises:
        ValueError: if the processor does more than resize, crop, rescale and normalize images.
    """
    name, mode = type(processor).__name__, mode_of(processor)
    try:
        preprocessing = _described(processor, mode)
        for pixels in _probes():
            image = open_image(pixels, mode)
            own = preprocessing.values(preprocessing.pixels(image))
            is_equal = np.array_equal(own, ProcessorReader(processor, mode).pixels(image))
            if not is_equal:
                raise ValueError("Its result differs from that of resizing, cropping, rescaling and normalizing.")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{name} does more than resize, crop, rescale and normalize images to one size, which exports without "
            f"transformers can do: use a model with an image processor such as ViTImageProcessor. {error}"
        ) from error
    return preprocessing


def mode_of(processor: Any) -> str:
    """Mode of Pillow: greyscale if the processor has one mean for all of a pixel, else with three channels."""
    mean = getattr(processor, "image_mean", None)
    return MODES[1 if isinstance(mean, list | tuple) and len(mean) == 1 else 3]


def check_channels(processor: Any, config: PreTrainedConfig) -> None:
    """Raises `ValueError` if a model reads another number of channels than its image processor gives."""
    vision = getattr(config, "vision_config", None)
    wanted = getattr(config, "num_channels", None) or getattr(vision, "num_channels", None) or 3
    given = len(mode_of(processor))
    if wanted != given:
        raise ValueError(
            f"The model reads images with {wanted} channels, but its {type(processor).__name__} gives {given}, as its "
            f"image_mean says: use its own image processor."
        )


@dataclass(frozen=True)
class ProcessorReader:
    """Prepares images with the image processor itself."""

    processor: Any
    mode: str

    def pixels(self, image: "Image") -> np.ndarray:
        """`[channels, height, width]` in fp32."""
        (pixels,) = self.processor([image], return_tensors="np")["pixel_values"]
        return np.asarray(pixels, np.float32)

    def values(self, pixels: np.ndarray) -> np.ndarray:
        return pixels


def _described(processor: Any, mode: str) -> Preprocessing:
    size = dict(processor.size or {}) if processor.do_resize else {}
    size = {name: value for name, value in size.items() if value is not None}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
    found: dict[str, Any] = {"crop": None if crop is None else (crop["height"], crop["width"])}
    name = type(processor).__name__
    if name.startswith("Levit") and "shortest_edge" in size:
        size["shortest_edge"] = int(256 / 224 * size["shortest_edge"])
    if name.startswith("ConvNext") and "shortest_edge" in size:
        edge = size.pop("shortest_edge")
        if edge < 384:  # as in its `resize`: a larger image whose middle is cut out
            found |= {"shortest_edge": int(edge / processor.crop_pct), "crop": (edge, edge)}
        else:
            found |= {"height": edge, "width": edge}
    if unknown := size.keys() - {"height", "width", "shortest_edge"}:
        raise ValueError(f"Its size has {', '.join(sorted(unknown))}.")
    if getattr(processor, "do_pad", None):
        raise ValueError("It pads images.")
    if getattr(processor, "do_normalize", None):
        mean, std = (np.broadcast_to(own, len(mode)).tolist() for own in (processor.image_mean, processor.image_std))
        found |= {"mean": tuple(mean), "std": tuple(std)}
    return Preprocessing(
        mode=mode,
        resample=2 if processor.resample is None else int(processor.resample),
        rescale=processor.rescale_factor if processor.do_rescale else None,
        reverse_channels=bool(getattr(processor, "do_flip_channel_order", False)),
        **size,
        **found,
    )


@cache
def _probes() -> list[np.ndarray]:
    """Images wider than high, higher than wide, and smaller than models read: smooth colours with some noise."""
    generator = np.random.default_rng(0)
    images = []
    for height, width in [(201, 320), (315, 160), (17, 29)]:
        rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        smooth = np.stack([rows, columns, (rows + columns) / 2], axis=-1)
        images.append((255 * (0.8 * smooth + 0.2 * generator.random(smooth.shape))).astype(np.uint8))
    return images
