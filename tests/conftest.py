"""Tiny models and batches, built from configs: nothing is downloaded and nothing is cached."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the Hub fails instead of waiting

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
)

# Every run tries the same examples, so that what passed once passes again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

torch.set_num_threads(1)  # tiny models run slower on more

VOCAB_SIZE = 61
PAD, MASK = 0, 4
HEADS = {"classification": AutoModelForSequenceClassification, "mlm": AutoModelForMaskedLM}


def make_config(family: str, num_layers: int = 4, width: int = 16, dropout: float = 0.0, **overrides):
    if family == "distilbert":
        sizes = {"dim": width, "n_layers": num_layers, "n_heads": 2, "hidden_dim": 2 * width}
        dropouts = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
        return DistilBertConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=40,
            pad_token_id=PAD,
            initializer_range=0.2,
            **sizes,
            **dropouts,
            **overrides,
        )
    config_class = {"bert": BertConfig, "roberta": RobertaConfig}[family]
    sizes = {"hidden_size": width, "num_hidden_layers": num_layers, "num_attention_heads": 2}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return config_class(
        vocab_size=VOCAB_SIZE,
        intermediate_size=2 * width,
        max_position_embeddings=40,
        pad_token_id=PAD,
        initializer_range=0.2,  # far from uniform outputs, so that the losses are far from 0
        **sizes,
        **dropouts,
        **overrides,
    )


def make_model(family: str, head: str, seed: int = 0, **overrides):
    """A tiny model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return HEADS[head].from_config(make_config(family, **overrides)).eval()


def make_rows(head: str, num_rows: int = 16, seed: int = 0, num_labels: int = 2) -> list[dict[str, list[int]]]:
    """Rows of ragged length. For "mlm", from none to all of a row's tokens have a label."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    rows = []
    for index in range(num_rows):
        length = integers(3, 20, 1)[0]
        row = {"input_ids": integers(5, VOCAB_SIZE, length), "attention_mask": [1] * length}
        if head == "classification":
            row["labels"] = integers(0, num_labels, 1)[0]
        else:
            share = index / (num_rows - 1)
            is_masked = (torch.rand(length, generator=generator) < share).tolist()
            row["labels"] = [
                token if masked else -100 for token, masked in zip(row["input_ids"], is_masked, strict=True)
            ]
            row["input_ids"] = [
                MASK if masked else token for token, masked in zip(row["input_ids"], is_masked, strict=True)
            ]
        rows.append(row)
    return rows


def collate(rows: list[dict], length: int | None = None) -> dict[str, torch.Tensor]:
    """Pads to the longest row, or to `length`."""
    length = length or max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": PAD, "attention_mask": 0, "token_type_ids": 0, "labels": -100}
    batch = {}
    for name in rows[0]:
        if isinstance(rows[0][name], list):
            batch[name] = torch.tensor([row[name] + [fill[name]] * (length - len(row[name])) for row in rows])
        else:
            batch[name] = torch.tensor([row[name] for row in rows])
    return batch


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def family(request) -> str:
    return request.param


@pytest.fixture(params=["classification", "mlm"])
def head(request) -> str:
    return request.param
