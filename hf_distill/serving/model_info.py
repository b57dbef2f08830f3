"""What a service says of its model, and whether a model can be served."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from hf_distill.deployment.predictor import Predictor

SERVED_HEADS = ["sequence classification", "token classification", "masked language modelling"]
SNAPSHOTS = "snapshots"
"""The folder of a model in the cache of the Hub in which each commit has its own."""

LONGEST_WARM_UP = 512
"""Words; there are models that would take minutes for as many as they can read."""


@dataclass(frozen=True)
class ModelInfo:
    """A model, as its workers describe it to the service, which itself loads none.

    Attributes:
        name: of its folder, or on the Hub.
        revision: the commit on the Hub; of a folder, a hash of what is in it.
        format: such as `"onnx-int8"`.
        max_length: the tokens that it reads of a text, at most.
        tokens_per_second: how fast a worker read the longest text when it warmed up.
    """

    name: str
    revision: str
    format: str
    max_length: int
    tokens_per_second: float

    def headers(self) -> dict[str, str]:
        """Which model it is, as headers of HTTP."""
        said = {"name": self.name, "revision": self.revision, "format": self.format}
        return {f"x-model-{what}": quote(value) for what, value in said.items()}


def model_info(predictor: Predictor, model: str) -> ModelInfo:
    """Describes a model that was loaded by the name of a folder or on the Hub, and warms it up.

    Raises:
        ValueError: if its head is none that can be served, or if its classes have no names.
    """
    if predictor.head not in SERVED_HEADS:
        raise ValueError(f"{model} is for {predictor.head}: what can be served is {', '.join(SERVED_HEADS)}.")
    is_number = predictor.reader.problem_type == "regression"
    placeholders = [f"LABEL_{number}" for number in range(len(predictor.labels))]
    if predictor.head != "masked language modelling" and predictor.labels == placeholders and not is_number:
        raise ValueError(
            f"{model} has no names for its classes, only {', '.join(placeholders[:3]) or 'none'}: write them as "
            f"id2label and label2id into its config.json; if it is an export, export it again."
        )
    assert predictor.folder is not None  # it was loaded from one
    return ModelInfo(
        name=Path(model).resolve().name if Path(model).is_dir() else model,
        revision=revision_of(predictor.folder),
        format=predictor.format,
        max_length=predictor.encoder.max_length,
        tokens_per_second=warm_up(predictor),
    )


def warm_up(predictor: Predictor) -> float:
    """Reads texts of all lengths, so that the first requests find memory and threads that are there.

    Returns:
        How many tokens of the longest were read per second.
    """
    longest = min(predictor.encoder.max_length, LONGEST_WARM_UP)
    for length in [*(2**power for power in range(longest.bit_length() - 1)), longest]:
        started = time.perf_counter()
        encodings = predictor.encoder.encode(["a " * length])
        predictor.run(encodings)
    return len(encodings[0]) / (time.perf_counter() - started)


def revision_of(folder: Path) -> str:
    """The commit of a model that is from the Hub; else the first 12 digits of the SHA-256 of its files."""
    parts = folder.absolute().parts
    if SNAPSHOTS in parts[:-1]:
        return parts[parts.index(SNAPSHOTS) + 1]
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".onnx", ".data", ".safetensors"):
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]
