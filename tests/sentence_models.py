"""Tiny embedding models of sentence-transformers, and a tokenizer for them."""

from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_text_tokenizer
from tests.student.tiny_models import tiny_config

PROMPTS = {"query": "w5 w6 ", "document": "w7 ", "plain": ""}


def make_sentence_model(
    folder: Path,
    pooling: str = "mean",
    model_type: str = "bert",
    dense: int | None = None,
    normalize: bool = True,
    max_length: int = 24,
    tokenizer: PreTrainedTokenizerFast | None = None,
    options: dict | None = None,
    **settings,
):
    """A SentenceTransformer with random weights: a transformer of two layers, a pooling, and more modules.

    Args:
        folder: where the transformer is written, which sentence-transformers reads.
        pooling: mode of the pooling.
        model_type: architecture of the transformer.
        dense: width of two Dense modules with an activation between them; None for no such modules.
        normalize: whether vectors have length 1.
        max_length: maximum number of tokens.
        tokenizer: by default that of `make_text_tokenizer`.
        options: options of the config.
        **settings: options of SentenceTransformer, such as `prompts`.
    """
    from sentence_transformers import SentenceTransformer, models

    torch.manual_seed(0)
    config = tiny_config(model_type, **{"num_hidden_layers": 2, **(options or {})})
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    (make_text_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    transformer = models.Transformer(str(folder), max_seq_length=max_length)
    width = transformer.get_embedding_dimension()
    modules = [transformer, models.Pooling(width, pooling)]
    if dense is not None:
        pooled = modules[1].get_embedding_dimension()
        modules.append(models.Dense(pooled, 3 * dense, activation_function=nn.GELU()))
        modules.append(models.Dense(3 * dense, dense, bias=False, activation_function=nn.Identity()))
    if normalize:
        modules.append(models.Normalize())
    return SentenceTransformer(modules=modules, device="cpu", **settings)
