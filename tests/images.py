"""Small images, and a tiny model that reads them, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 40, 50)}


def make_image(colour: str, seed: int = 0, height: int = 20, width: int = 28) -> Image.Image:
    """Noise around a colour."""
    noise = np.random.default_rng(seed).normal(0, 40, (height, width, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def write_images(folder: Path, num_images: int = 12, seed: int = 0, suffix: str = ".png") -> Path:
    """Writes a folder with a subfolder of images for each colour."""
    for number in range(num_images):
        colour = list(COLOURS)[number % len(COLOURS)]
        (folder / colour).mkdir(parents=True, exist_ok=True)
        make_image(colour, seed + number, 16 + number, 30 - number % 5).save(folder / colour / f"{number:03}{suffix}")
    return folder


def make_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def make_vit(num_layers: int = 4, **overrides) -> ViTForImageClassification:
    config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    names = dict(enumerate(COLOURS))
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return ViTForImageClassification(
        ViTConfig(num_hidden_layers=num_layers, **{**config, **dropout, **labels, **overrides})
    )
