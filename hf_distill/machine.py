"""The machine and the packages: what figures were measured on, and what a bug report needs."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_distill.version import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "onnxruntime", "torchao")
"""The packages that run models."""

CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_tile": "AMX",
    "asimd": "NEON",
}
"""Features that decide how fast a model runs in bfloat16 and int8: the name on Linux, and the name to show."""


def machine() -> dict[str, Any]:
    """The CPU's name, its cores, and the operating system; the machine itself is not named."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count() or 1, "system": f"{platform.system()} {platform.machine()}"}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python, hf_distill and the installed packages."""
    found = {"python": platform.python_version(), "hf_distill": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_features() -> list[str] | None:
    """The `CPU_FEATURES` of this CPU; None if the system does not list them, as outside of Linux."""
    lines = _cpuinfo("flags") or _cpuinfo("Features")
    return [name for feature, name in CPU_FEATURES.items() if feature in lines[0].split()] if lines else None


def _cpu_name() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo(name: str) -> list[str]:
    """The values of a name, one for each core."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
