"""Describes the model of a service, and checks that it can be served."""

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from hf_distill.deployment.embeddings import EMBEDDING
from hf_distill.deployment.locating import module_folders
from hf_distill.deployment.parity_inputs import built_in_inputs
from hf_distill.deployment.predictor import Predictor

SERVED_HEADS = [
    *("sequence classification", "token classification", "question answering"),
    *("masked language modelling", "sequence-to-sequence"),
    EMBEDDING,
    *("image classification", "audio classification", "speech recognition"),
]
SNAPSHOTS = "snapshots"
"""Folder in the Hub cache of a model that contains one folder per commit."""

UNLIMITED = 10**9
"""Maximum number of tokens of a model that reads long texts in windows."""

LONGEST_WARM_UP = 512
"""Words in the longest warm-up text. Some models would take minutes for the longest text they accept."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model that a worker sends to the service, which loads no model itself.

    Attributes:
        name: name of its folder, or Hub name.
        revision: commit on the Hub; for a folder, a hash of its content.
        format: format, such as `"onnx-int8"`.
        max_length: maximum number of tokens per text.
        reads: what it reads: `"text"`; `"pair"`, a pair of texts; `"question"`, a question and its context; or
            `"image"` or `"audio"`.
        reranks: True if it gives one score to each pair, such as a query and a document.
        width: number of values in a vector of an embedding model; None for other models.
        prompts: prompts of an embedding model by name.
        default_prompt_name: name of the prompt that is used if none is named; None for no prompt.
        tokens_per_second: speed of a worker on the longest warm-up text.
    """

    name: str
    revision: str
    format: str
    max_length: int
    tokens_per_second: float
    reads: str = "text"
    reranks: bool = False
    width: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    @property
    def embeds(self) -> bool:
        """True if it is an embedding model, which gives a vector for each text and no prediction."""
        return self.width is not None

    def headers(self) -> dict[str, str]:
        """HTTP headers that identify the model."""
        said = {"name": self.name, "revision": self.revision, "format": self.format}
        return {f"x-model-{what}": quote(value) for what, value in said.items()}


def model_info(predictor: Predictor, model: str) -> ModelInfo:
    """Describes a model loaded from a folder or the Hub, and warms it up.

    Raises:
        ValueError: if its head cannot be served, or if its classes have no names.
    """
    if predictor.head not in SERVED_HEADS:
        raise ValueError(
            f"{model} is for {predictor.head} and cannot be served: serve a model for one of {', '.join(SERVED_HEADS)}."
        )
    is_number = len(predictor.labels) == 1  # such as a relevance, which needs no name
    placeholders = [f"LABEL_{number}" for number in range(len(predictor.labels))]
    if predictor.labels and predictor.labels == placeholders and not is_number:
        raise ValueError(
            f"{model} has no class names, only {', '.join(placeholders[:3])}: set id2label and label2id in "
            f"its config.json. If it is an export, set them in the student and export it again."
        )
    assert predictor.folder is not None  # `load_predictor` sets it
    return ModelInfo(
        name=Path(model).resolve().name if Path(model).is_dir() else model,
        revision=revision_of(predictor.folder),
        format=predictor.format,
        max_length=predictor.encoder.max_length if predictor.encoder.stride is None else UNLIMITED,
        tokens_per_second=warm_up(predictor),
        reads=_reads(predictor),
        reranks=predictor.reads_pairs and len(predictor.labels) == 1,
        width=predictor.reader.width,
        prompts=dict(predictor.reader.prompts.by_name),
        default_prompt_name=predictor.reader.prompts.default,
    )


def _reads(predictor: Predictor) -> str:
    if predictor.head == "question answering":
        return "question"
    return predictor.reads


def warm_up(predictor: Predictor) -> float:
    """Runs texts of increasing length, so that the first requests do not wait for memory and threads.

    Returns:
        Tokens per second on the longest text.
    """
    if predictor.reads in ("image", "audio"):
        return _warm_up_on_files(predictor)
    longest = min(predictor.encoder.max_length, LONGEST_WARM_UP)
    for length in [*(2**power for power in range(longest.bit_length() - 1)), longest]:
        started = time.perf_counter()
        text = "a " * length
        encodings = predictor.encoder.encode([("a", text) if predictor.reads_pairs else text])
        predictor.run(encodings)
    return len(encodings[0]) / (time.perf_counter() - started)


def _warm_up_on_files(predictor: Predictor) -> float:
    for given in built_in_inputs(predictor.reads)[:3]:
        started = time.perf_counter()
        encodings = predictor.encoder.encode([given])
        predictor.run(encodings)
    return len(encodings[0]) / (time.perf_counter() - started)


def revision_of(folder: Path) -> str:
    """The commit of a model from the Hub; for a local folder, the first 12 digits of the SHA-256 of its files."""
    parts = folder.absolute().parts
    if SNAPSHOTS in parts[:-1]:
        return parts[parts.index(SNAPSHOTS) + 1]
    digest = hashlib.sha256()
    below = [file for own in module_folders(folder) if own.is_dir() for file in own.iterdir()]
    for file in sorted([*folder.iterdir(), *below]):
        if file.suffix in (".json", ".onnx", ".data", ".safetensors"):
            with file.open("rb") as content:
                name, own = file.relative_to(folder).as_posix(), hashlib.file_digest(content, "sha256").hexdigest()
                digest.update(f"{name} {own}\n".encode())
    return digest.hexdigest()[:12]
