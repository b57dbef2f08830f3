"""Imports optional packages where they are used."""

from importlib import import_module
from types import ModuleType


def optional(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: module name, such as `"sklearn.metrics"`.
        extra: extra of hf_distill that installs it, such as `"evaluation"`.

    Raises:
        ImportError: if the package is not installed; the message shows how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'hf_distill[{extra}]'.") from error
