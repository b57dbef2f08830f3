"""Embedding models: a transformer with pooling, read and written in the format of sentence-transformers."""

from hf_distill.embedding.anchors import Anchors, read_anchors, write_anchors
from hf_distill.embedding.dense import fit_dense, reduce_width
from hf_distill.embedding.folders import is_sentence_transformer
from hf_distill.embedding.model import EmbeddingModel, EmbeddingOutput, as_embedding_model

__all__ = [
    "Anchors",
    "EmbeddingModel",
    "EmbeddingOutput",
    "as_embedding_model",
    "fit_dense",
    "is_sentence_transformer",
    "read_anchors",
    "reduce_width",
    "write_anchors",
]
