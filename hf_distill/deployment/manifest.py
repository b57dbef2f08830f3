"""`export.json`: what an export is, and whether all of it is there. Read without PyTorch and without transformers."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from hf_distill.files import MANIFEST, read_json, write_json

GRAPH = "model.onnx"
OPSET = 20
"""The latest version of ONNX's operators that PyTorch writes by default; ONNX Runtime reads it from version 1.18 on."""


@dataclass(frozen=True)
class Manifest:
    """What is written beside an exported model.

    Attributes:
        format: a name in `FORMATS`.
        head: a name in `PREDICTION_HEADS`.
        student: the name of what was exported: on the Hub, or of its folder.
        inputs: the model's, in its order.
        outputs: the model's, in its order.
        labels: the classes by number; empty for a head over the vocabulary or over positions.
        problem_type: of sequence classification, as in transformers.
        max_length: the tokens that the model reads of a text, at most.
        pad_token_id: what fills up the shorter texts of a batch.
        mask_token_id: of a masked language model; else None.
        num_parameters: of the student.
        opset: the version of ONNX's operators; None where it is not ONNX.
        versions: of the packages that wrote it.
        files: the bytes of each file that makes up the model.
        parity: what was measured beside the student.
        truncation: which part it reads of a text that has more tokens.
    """

    format: str
    head: str
    student: str
    inputs: list[str]
    outputs: list[str]
    labels: list[str]
    problem_type: str | None
    max_length: int
    pad_token_id: int
    mask_token_id: int | None
    num_parameters: int
    opset: int | None
    versions: dict[str, str]
    files: dict[str, int]
    parity: dict[str, object] = dataclasses.field(default_factory=dict)
    truncation: str = "head"

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, dataclasses.asdict(self))


def is_export(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def format_of(folder: Path) -> str:
    """Of a folder with an export, of which the other files may not be there yet."""
    return _read(folder).format


def read_manifest(folder: Path) -> Manifest:
    """Of a folder with an export, checked.

    Raises:
        ValueError: if `export.json` cannot be read, or if a file that it names is missing or has another size.
    """
    manifest = _read(folder)
    for name, size in manifest.files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which is a part of the model: copy it there, or export again.")
        if (actual := (folder / name).stat().st_size) != size:
            raise ValueError(
                f"{folder / name} has {actual:,} bytes in place of {size:,}: it was not copied to its end, or was "
                f"changed. Copy it again, or export again."
            )
    return manifest


def _read(folder: Path) -> Manifest:
    try:
        return Manifest(**read_json(folder / MANIFEST))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} cannot be read: {error}. Export the student again.") from error
