"""Anchors: a fixed set of texts as vectors of a teacher, in a file that says which teacher."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_distill.embedding.encoding import check_texts, encode
from hf_distill.embedding.model import as_embedding_model
from hf_distill.fingerprints import fingerprint

VECTORS = "vectors"


class Anchors(NamedTuple):
    """Vectors of a fixed set of texts.

    Attributes:
        vectors: `[anchors, width]`.
        teacher: name of the model that they come from.
        fingerprint: fingerprint of its weights.
    """

    vectors: torch.Tensor
    teacher: str
    fingerprint: str


def write_anchors(file: str | Path, teacher: object, texts: Sequence[str]) -> None:
    """Writes a teacher's vectors of some texts, for `alpha_anchor`.

    Args:
        file: a safetensors file. An existing one is replaced.
        teacher: an `EmbeddingModel` or a `SentenceTransformer`.
        texts: two or more different texts, such as 1,000 of the training texts.

    Raises:
        ValueError: if there are fewer than two different texts, or if one is empty.

    Example:
        >>> write_anchors("anchors.safetensors", teacher, texts[:1000])
        >>> args = DistillationTrainingArguments("student", alpha_anchor=1.0, anchors="anchors.safetensors")
    """
    check_texts(texts)
    if len(set(texts)) < 2:
        raise ValueError(f"There is {len(set(texts))} different text: give two or more as anchors.")
    model = as_embedding_model(teacher)
    vectors = encode(model, texts)
    record = {
        "teacher": os.path.basename(model.config._name_or_path),
        "fingerprint": fingerprint(model.named_parameters()),
    }
    unfinished = Path(f"{file}.unfinished")
    save_file({VECTORS: vectors}, unfinished, metadata=record)
    unfinished.replace(file)


def read_anchors(file: str | Path) -> Anchors:
    """Reads a file of `write_anchors`.

    Raises:
        ValueError: if there is no such file, or if it has other content.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            record = opened.metadata() or {}
            return Anchors(opened.get_tensor(VECTORS), record["teacher"], record["fingerprint"])
    except Exception as error:  # safetensors raises its own kinds
        raise ValueError(f"anchors={str(file)!r} is not a file of write_anchors: {error}") from error


def fingerprint_of(vectors: torch.Tensor) -> str:
    """A hash of vectors, which says whether two sets are the same."""
    return hashlib.sha256(vectors.float().cpu().numpy().tobytes()).hexdigest()[:16]
