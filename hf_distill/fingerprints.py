"""Identifies the weights of a model."""

import hashlib
from collections.abc import Iterable

from torch import nn


def fingerprint(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Identifies a model's weights: a hash of names, shapes and a few values of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {list(parameter.shape)}".encode())
        if not parameter.is_meta and type(parameter) is nn.Parameter and parameter.numel():
            step = max(1, parameter.numel() // 16)
            digest.update(parameter.detach().flatten()[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
