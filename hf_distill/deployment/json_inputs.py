"""Inputs of a model as values in JSON, for other processes."""

import base64
import io
from typing import Any

import numpy as np

from hf_distill.images import open_image


def to_json(given: Any) -> Any:
    """An input as a value in JSON: a text, a pair of texts or a file name as it is, everything else in base64."""
    if isinstance(given, str | tuple | list):
        return given
    if isinstance(given, np.ndarray) and np.issubdtype(given.dtype, np.floating):  # the samples of a recording
        return {"samples": base64.b64encode(given.astype(np.float32).tobytes()).decode()}
    if not isinstance(given, bytes):
        written = io.BytesIO()
        open_image(given).save(written, "PNG")
        given = written.getvalue()
    return {"base64": base64.b64encode(given).decode()}


def from_json(value: Any) -> Any:
    """The input of a value in JSON, which has no tuples and no bytes."""
    if isinstance(value, dict) and "samples" in value:
        return np.frombuffer(base64.b64decode(value["samples"]), np.float32)
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return tuple(value) if isinstance(value, list) else value
