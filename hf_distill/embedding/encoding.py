"""Texts to vectors, and checks of both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hf_distill.embedding.model import EmbeddingModel


def encode(model: "EmbeddingModel", texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """The vectors of texts, `[texts, width]`, in float32 on the CPU, without a prompt.

    Args:
        model: the model.
        texts: the texts.
        batch_size: texts per batch. Texts of similar length share a batch.
    """
    library_model = model.to_sentence_transformer()
    vectors = library_model.encode(
        list(texts), prompt="", batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
    )
    return vectors.float().cpu()


def check_texts(texts: Sequence[str]) -> None:
    """Checks that there are texts and that none is empty.

    Raises:
        ValueError: if there are none, or if one is empty.
    """
    if empty := [index for index, text in enumerate(texts) if not text or text.isspace()]:
        raise ValueError(f"{len(empty)} of {len(texts)} texts are empty, the first at index {empty[0]}: remove them.")
    if not len(texts):
        raise ValueError("There are no texts.")
