"""What figures were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_distill.version import __version__

PACKAGES = ["torch", "transformers", "tokenizers", "onnxruntime", "torchao"]


def machine() -> dict[str, Any]:
    """The CPU's name, its cores, and the operating system; the machine itself is not named."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count() or 1, "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Of Python, hf_distill and those packages that run models and are installed."""
    found = {"python": platform.python_version(), "hf_distill": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
