"""Packages that only evaluation needs, imported where they are used."""

from importlib import import_module
from types import ModuleType


def optional(module: str) -> ModuleType:
    """The module; an `ImportError` that says what to install, if it is not there."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"This needs {error.name}: pip install 'hf_distill[evaluation]'.") from error
