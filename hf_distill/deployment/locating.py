"""Finds the models and exports in a folder or a Hub repository."""

from pathlib import Path
from typing import Any

from hf_distill.deployment.formats import FORMATS, PYTORCH
from hf_distill.deployment.manifest import format_of, is_export
from hf_distill.files import MODULES, read_json


def formats_in(folder: Path, is_here: bool) -> dict[str, Path]:
    """The formats found in a folder, preferred ones first, each with its folder."""
    if is_export(folder):
        return {format_of(folder): folder}
    found = {format_of(own): own for own in sorted(folder.iterdir()) if own.is_dir() and is_export(own)}
    has_weights = bool(list(folder.glob("*.safetensors"))) or not is_here  # from the Hub, weights come later
    if (folder / "config.json").is_file() and has_weights:
        found[PYTORCH] = folder
    return {name: found[name] for name in FORMATS if name in found} | found


def download(name: str, **patterns: Any) -> Path:
    """Downloads some files of a Hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, **patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"No model found at {name}, neither as a local folder nor on the Hub: {error}") from error


def download_format(name: str, folder: Path, own: Path) -> None:
    """Downloads one format of a Hub repository.

    Args:
        name: name of the repository.
        folder: its folder in the cache, with its JSON files.
        own: the folder of the format: `folder`, or one below it.
    """
    if own != folder:
        download(name, allow_patterns=[f"{own.name}/*"])
        return
    download(name, ignore_patterns=["*/*"])
    if below := module_folders(folder):
        download(name, allow_patterns=[f"{own.name}/*" for own in below])


def module_folders(folder: Path) -> list[Path]:
    """The folders of the modules of an embedding model, such as `2_Dense`; none for other models."""
    if not (folder / MODULES).is_file():
        return []
    return [folder / module["path"] for module in read_json(folder / MODULES) if module["path"]]


def weights_in(folder: Path) -> list[Path]:
    """The files of weights of a PyTorch model."""
    return sorted(file for own in (folder, *module_folders(folder)) for file in own.glob("*.safetensors"))
