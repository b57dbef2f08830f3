"""Loads checkpoints whose weights have other names than those of the model."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def is_renamed(model: nn.Module | None, checkpoint: str) -> bool:
    """Whether a checkpoint has weights that the model has under other names.

    `save_pretrained` writes the names that earlier versions of transformers read, such as
    `vit.encoder.layer.0.attention.attention.key.weight` for `vit.layers.0.attention.k_proj.weight`. As of transformers
    5.23, `Trainer` looks for the model's own names when it resumes, finds none, and continues with the weights that the
    model has.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    one, index = Path(checkpoint, SAFE_WEIGHTS_NAME), Path(checkpoint, SAFE_WEIGHTS_INDEX_NAME)
    if one.is_file():
        with safe_open(one, framework="pt") as opened:
            names = set(opened.keys())
    elif index.is_file():
        names = set(json.loads(index.read_text())["weight_map"])
    else:
        return False
    return not names <= model.state_dict().keys()


def load_renamed(model: PreTrainedModel, checkpoint: str) -> None:
    """Loads the weights of a checkpoint into a model by `from_pretrained`, which knows all names."""
    with torch.random.fork_rng(devices=[]):
        loaded = type(model).from_pretrained(checkpoint, dtype=model.dtype, use_safetensors=True)
    model.load_state_dict(loaded.state_dict())
