"""Optional packages, imported where they are used."""

from importlib import import_module
from types import ModuleType


def optional(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: such as `"sklearn.metrics"`.
        extra: the extra of hf_distill that installs it, such as `"evaluation"`.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"This needs {error.name}: pip install 'hf_distill[{extra}]'.") from error
