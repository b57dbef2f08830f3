"""Packages that only an export needs, imported where they are used; and how to keep them quiet."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


def optional(module: str, extra: str = "onnx") -> ModuleType:
    """The module; an `ImportError` that says what to install, if it is not there."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"This needs {error.name}: pip install 'hf_distill[{extra}]'.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Exporter and quantiser warn of what is none of the user's business, such as operators for images."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", None)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
