"""Dense modules that change the width of an embedding model's vectors, and stay in the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

import torch
from torch import nn

from hf_distill.copies import plain_copy
from hf_distill.embedding.encoding import check_texts, encode
from hf_distill.embedding.model import EmbeddingModel, as_embedding_model
from hf_distill.optional import optional

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROUNDING = 1e-5
"""Directions with less than this share of the largest singular value are rounding: the mean of a layer norm is 0."""

GivenModel = Union[EmbeddingModel, "SentenceTransformer"]


def reduce_width(model: GivenModel, texts: Sequence[str], width: int) -> EmbeddingModel:
    """Reduces the width of a model's vectors to their principal components on some texts.

    The model gets a `Dense` module with the components, without a bias. The components are those of the vectors
    themselves, not of their differences from the mean, so they keep the products of vectors, and with them the cosines,
    as well as a linear map of this width can. A teacher of the student's width needs no projection.

    Args:
        model: an `EmbeddingModel` or a `SentenceTransformer`. It does not change.
        texts: texts such as the model will read, more of them than `width`.
        width: the new width.

    Returns:
        A copy with the additional module, in evaluation mode.

    Raises:
        ValueError: if `width` is not below the width of the vectors, if there are too few texts, or if one is empty.

    Example:
        >>> teacher = reduce_width(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"), texts, 192)
    """
    own = as_embedding_model(model)
    if not 0 < width < own.embedding_width:
        raise ValueError(f"width={width} should be above 0 and below {own.embedding_width}, the width of the vectors.")
    check_texts(texts)
    if len(texts) <= width:
        raise ValueError(f"There are {len(texts)} texts for {width} components: give more texts than components.")
    _, _, components = torch.linalg.svd(encode(own, texts).double(), full_matrices=False)
    return _with_dense(own, components[:width])


def fit_dense(model: GivenModel, teacher: GivenModel, texts: Sequence[str]) -> EmbeddingModel:
    """Maps a model's vectors to the width of a teacher's, by least squares on some texts.

    The model gets a `Dense` module, without a bias. Train it on with `alpha_embedding`: the student's vectors then
    are in the teacher's space, so documents can stay embedded by the teacher (asymmetric retrieval).

    Reference: Vujanic and Rueckstiess, 2025, LEAF, https://arxiv.org/abs/2509.12539

    Args:
        model: an `EmbeddingModel` or a `SentenceTransformer`. It does not change.
        teacher: the same of the teacher.
        texts: texts such as the model will read, more of them than the width of the model's vectors.

    Returns:
        A copy with the additional module, in evaluation mode.

    Raises:
        ValueError: if there are too few texts, or if one is empty.

    Example:
        >>> student = make_student(teacher, hidden_size=192, num_attention_heads=6)
        >>> student = fit_dense(student, teacher, texts)
    """
    own, other = as_embedding_model(model), as_embedding_model(teacher)
    check_texts(texts)
    if len(texts) <= own.embedding_width:
        raise ValueError(f"There are {len(texts)} texts for vectors of width {own.embedding_width}: give more texts.")
    vectors, targets = encode(own, texts).double(), encode(other, texts).double()
    solved = torch.linalg.lstsq(vectors, targets, rcond=ROUNDING, driver="gelsd")
    return _with_dense(own, solved.solution.T)


def _with_dense(model: EmbeddingModel, weight: torch.Tensor) -> EmbeddingModel:
    """A copy with one more `Dense`, and with one more `Normalize` if its vectors are normalised.

    Args:
        model: the model.
        weight: `[new width, width]`.
    """
    modules = optional("sentence_transformers.sentence_transformer.modules", "embeddings")
    dense = modules.Dense(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        activation_function=nn.Identity(),
        init_weight=weight.to(model.device, model.dtype).contiguous(),
    )
    copied = plain_copy(model)
    parts = [*copied.modules_in_order, dense]
    if type(parts[-2]).__name__ == "Normalize":
        parts.append(modules.Normalize())
    return EmbeddingModel(parts, copied.settings).eval()
