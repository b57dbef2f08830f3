"""How big, how good and how fast models are. The names of the figures are those of the table."""

import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score

from hf_distill import Predictor, load_predictor
from recipes.quickstart.progress import Advance

LATENCY, THROUGHPUT = "milliseconds, batch 1", "sentences per second"
ROUNDS = 8
NUM_ONE_BY_ONE = 25


def measure(models: dict[str, Path], texts: list[str], labels: list[int], advance: Advance) -> dict[str, dict]:
    """Measures models side by side, on the CPU. The first is the teacher, with which the others are compared.

    The texts are read in rounds. In a round each model reads 25 texts one by one, whose median is its latency, and then
    all texts of the round in the batches that suit it, which gives its throughput and its predictions. As the models
    take turns, a machine that slows down slows them all. Times include the tokenisation.

    Returns:
        For each model `parameters`, `megabytes`, `accuracy`, `interval` (the half-width of the 95% confidence interval
        of the accuracy), `agreement`, latency and throughput; and `ratios`, each to the teacher. The ratio of a time is
        the median over the rounds.
    """
    predictors = {name: load_predictor(folder) for name, folder in models.items()}
    for predictor in predictors.values():
        predictor.logits(texts[:NUM_ONE_BY_ONE])  # the first forwards are slower
    seen = {name: {LATENCY: [], THROUGHPUT: []} for name in models}
    logits = {name: [] for name in models}
    size = -(-len(texts) // ROUNDS)
    for start in range(0, len(texts), size):
        for name, predictor in predictors.items():
            chunk = texts[start : start + size]
            milliseconds, seconds, own_logits = _read(predictor, chunk)
            seen[name][LATENCY].append(milliseconds)
            seen[name][THROUGHPUT].append(len(chunk) / seconds)
            logits[name].append(own_logits)
        advance(min(1.0, (start + size) / len(texts)))
    return _figures(models, predictors, {name: np.concatenate(own) for name, own in logits.items()}, labels, seen)


def quality(logits: ArrayLike, labels: list[int], teacher_logits: ArrayLike) -> dict[str, float]:
    """Accuracy and F1 on the labels, and the share of texts for which the teacher predicts the same class."""
    predictions, of_teacher = np.asarray(logits).argmax(-1), np.asarray(teacher_logits).argmax(-1)
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "F1": float(f1_score(labels, predictions)),
        "agreement": float(accuracy_score(of_teacher, predictions)),
    }


def interval(accuracy: float, number: int) -> float:
    """The half-width of the 95% confidence interval of an accuracy, by the normal approximation."""
    return 1.96 * (accuracy * (1 - accuracy) / number) ** 0.5


def _read(predictor: Predictor, texts: list[str]) -> tuple[float, float, np.ndarray]:
    """Median milliseconds of one text, seconds for all texts, and their logits."""
    predictor.logits(texts[:1])  # threads of the model before are still busy for a moment
    one_by_one = []
    for text in texts[:NUM_ONE_BY_ONE]:
        start = time.perf_counter()
        predictor.logits([text])
        one_by_one.append(time.perf_counter() - start)
    start = time.perf_counter()
    logits = predictor.logits(texts)
    return 1000 * statistics.median(one_by_one), time.perf_counter() - start, logits


def _figures(models, predictors, logits, labels, seen) -> dict[str, dict]:
    first = next(iter(models))
    figures = {}
    for name, folder in models.items():
        own = {
            "parameters": predictors[name].num_parameters,
            "megabytes": _bytes_of_weights(folder) / 1e6,
            **quality(logits[name], labels, logits[first]),
            **{key: statistics.median(values) for key, values in seen[name].items()},
        }
        figures[name] = {**own, "interval": interval(own["accuracy"], len(labels))}
    for name, own in figures.items():
        ratios = {key: own[key] / figures[first][key] for key in ("parameters", "megabytes", "accuracy", "agreement")}
        for key in (LATENCY, THROUGHPUT):
            pairs = zip(seen[name][key], seen[first][key], strict=True)
            ratios[key] = statistics.median(value / of_teacher for value, of_teacher in pairs)
        own["ratios"] = ratios
    return figures


def _bytes_of_weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".onnx"))
