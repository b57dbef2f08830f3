"""`export.json`: describes an export, and lets readers check that its files are complete.

Reading it needs neither PyTorch nor transformers.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.files import MANIFEST, read_json, write_json
from hf_distill.words import WordRule

GRAPH = "model.onnx"
OPSET = 20
"""ONNX opset of exports: the latest that PyTorch writes by default. ONNX Runtime reads it since version 1.18."""


@dataclass(frozen=True)
class Manifest:
    """Description of an exported model, saved with it.

    Attributes:
        format: a name in `FORMATS`.
        head: a name in `PREDICTION_HEADS`.
        student: name of the exported student: its Hub name, or the name of its folder.
        inputs: names of the model's inputs, in order.
        outputs: names of the model's outputs, in order.
        labels: class names in the order of their numbers; empty for a head over the vocabulary or over positions.
        problem_type: problem type of sequence classification, as in transformers.
        max_length: maximum number of tokens per text.
        pad_token_id: token that pads the shorter texts of a batch.
        mask_token_id: mask token of a masked language model; else None.
        num_parameters: number of parameters of the student.
        opset: ONNX opset; None if the format is not ONNX.
        versions: versions of the packages that wrote the export.
        files: size in bytes of each file of the model.
        parity: comparison with the student.
        reads_pairs: True if the model reads pairs of texts.
        truncation: which part of a longer text is kept.
        stride: tokens in both of two neighbouring windows of a longer text; None if it is truncated.
        max_answer_tokens: longest answer of question answering in tokens.
        no_answer_threshold: how much more likely it must be that a question has no answer, as in
            `hf_distill.answers.best_answers`; None if every question has an answer.
        source_prefix: text in front of each text.
        preprocessing: how inputs are prepared, complete enough to repeat it without transformers: the arguments of
            `hf_distill.images.Preprocessing` or `hf_distill.sounds.Waveform`; None for a model that reads text.
        words: how token classification splits a text into words, as in `split_words`; None if it decides per token.
        prompts: prompts of an embedding model by name.
        default_prompt_name: name of the prompt that is used if none is named; None for no prompt.
        embedding_width: number of values in a vector of an embedding model; None for other models.
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
    reads_pairs: bool = False
    truncation: str = "head"
    stride: int | None = None
    words: WordRule | None = None
    max_answer_tokens: int = 30  # that of exports of earlier versions
    no_answer_threshold: float | None = None
    source_prefix: str = ""
    preprocessing: dict[str, Any] | None = None
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    embedding_width: int | None = None

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, dataclasses.asdict(self))


def is_export(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def format_of(folder: Path) -> str:
    """Format of an export. Needs only `export.json`; the other files need not be downloaded yet."""
    return _read(folder).format


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of an export, and checks that its files are complete.

    Raises:
        ValueError: if `export.json` cannot be read, or if one of its files is missing or has another size.
    """
    manifest = _read(folder)
    for name, size in manifest.files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}, a file of the model: copy it there, or export again.")
        if (actual := (folder / name).stat().st_size) != size:
            raise ValueError(
                f"{folder / name} has {actual:,} bytes instead of {size:,}: the copy is incomplete, or the file was "
                f"changed. Copy it again, or export again."
            )
    return manifest


def _read(folder: Path) -> Manifest:
    try:
        return Manifest(**read_json(folder / MANIFEST))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} cannot be read: {error}. Export the student again.") from error
