"""How good, how big and how fast a model is. The names of the figures are those of the tables."""

import statistics
import time
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, f1_score
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.quickstart.data import MAX_LENGTH

BATCH_SIZE = 64
LATENCY, THROUGHPUT = "milliseconds for one sentence", "sentences per second"


@torch.inference_mode()
def forward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """`[texts, labels]`: the model's logits, in fp32 on the CPU."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    return model(**inputs.to(model.device)).logits.float().cpu()


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """`[texts, labels]`: the model's logits. Texts of like length share a batch."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    logits = torch.empty(len(texts), model.config.num_labels)
    for start in tqdm(range(0, len(texts), BATCH_SIZE), desc="Predicting", leave=False):
        indices = order[start : start + BATCH_SIZE]
        logits[indices] = forward(model, tokenizer, [texts[index] for index in indices])
    return logits


def quality(logits: torch.Tensor, labels: list[int], teacher_logits: torch.Tensor) -> dict[str, float]:
    """Accuracy and F1 against the labels, and the share of texts on which the teacher says the same."""
    predictions = logits.argmax(-1)
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "F1": float(f1_score(labels, predictions)),
        "agreement with the teacher": float(accuracy_score(teacher_logits.argmax(-1), predictions)),
    }


def size(model: PreTrainedModel, folder: Path) -> dict[str, float]:
    """Layers, parameters, and the weights on disk."""
    return {
        "layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "megabytes on disk": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6,
    }


def speed(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, texts: list[str], rounds: int = 7
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Latency and throughput of each model, tokenising included; and the ratios of each to the first model.

    In a round a model reads 40 texts one by one, the median of which is its latency, and all texts in batches of 64,
    which gives its throughput. The models take turns within a round, so that a machine that slows down slows them all:
    a ratio is the median over the rounds of the ratio within a round.
    """
    batches = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
    seen = {name: {LATENCY: [], THROUGHPUT: []} for name in models}
    for number in tqdm(range(rounds + 1), desc="Timing", leave=False):
        for name, model in models.items():
            one_by_one = [_seconds(model, tokenizer, [text]) for text in texts[:40]]
            in_batches = [_seconds(model, tokenizer, batch) for batch in batches]
            if number > 0:  # the first round warms up
                seen[name][LATENCY].append(1000 * statistics.median(one_by_one))
                seen[name][THROUGHPUT].append(len(texts) / sum(in_batches))
    first = seen[next(iter(models))]
    figures = {name: {key: statistics.median(values) for key, values in seen[name].items()} for name in models}
    ratios = {
        name: {
            key: statistics.median(own / others for own, others in zip(values, first[key], strict=True))
            for key, values in seen[name].items()
        }
        for name in models
    }
    return figures, ratios


def _seconds(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    start = time.perf_counter()
    forward(model, tokenizer, texts)
    return time.perf_counter() - start
