"""Tiny embedding models, made from configs."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers import AutoModel

from tests.conftest import make_config, make_text_tokenizer, make_texts

library = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer import modules as models  # noqa: E402

from hf_distill.embedding import EmbeddingModel  # noqa: E402

TEXTS = [*make_texts(11), "w7 " * 60]
"""Texts of different lengths. The last one is longer than the models read."""


def make_transformer_folder(folder: Path, family="bert", seed=0, **config) -> Path:
    """Writes a model without a head and its tokenizer."""
    torch.manual_seed(seed)
    AutoModel.from_config(make_config(family, **config)).save_pretrained(folder)
    tokenizer = make_text_tokenizer()
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(folder)
    return folder


def make_modules(folder: Path, pooling="mean", dense=None, normalize=True, **options) -> list:
    """The modules of a `SentenceTransformer`.

    Args:
        folder: where its transformer is written first.
        pooling: the pooling.
        dense: width of a Dense module; None for none.
        normalize: whether the last module normalises.
        options: see `make_transformer_folder`.
    """
    transformer = models.Transformer(str(make_transformer_folder(folder, **options)))
    parts = [transformer, models.Pooling(transformer.get_embedding_dimension(), pooling)]
    if dense is not None:
        parts.append(models.Dense(parts[-1].get_embedding_dimension(), dense))
    return [*parts, models.Normalize()] if normalize else parts


def make_sentence_transformer(**options):
    """A tiny `SentenceTransformer` with a prompt; see `make_modules`."""
    with TemporaryDirectory() as folder:
        modules = make_modules(Path(folder), **options)
    return library.SentenceTransformer(modules=modules, device="cpu", prompts={"query": "w5 w6 "}).eval()


def make_embedding_model(**options) -> EmbeddingModel:
    """A tiny `EmbeddingModel`; see `make_modules`."""
    return EmbeddingModel.from_sentence_transformer(make_sentence_transformer(**options))


def encode(model, texts=TEXTS) -> torch.Tensor:
    """The vectors of texts, by sentence-transformers."""
    model = model.to_sentence_transformer() if isinstance(model, EmbeddingModel) else model
    return model.encode(list(texts), convert_to_tensor=True, prompt="")


def tokenized(model: EmbeddingModel, texts=TEXTS) -> dict:
    return dict(model.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))
