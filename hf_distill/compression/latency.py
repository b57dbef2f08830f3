"""Predicts how long students take in each format, and measures models on real inputs."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from hf_distill.deployment.embeddings import EMBEDDING
from hf_distill.deployment.predictor import Predictor
from hf_distill.optional import optional

ROUNDS, WARM_UP = 5, 1


@dataclass(frozen=True)
class Cost:
    """What the time of a model is predicted from.

    Attributes:
        products: seconds of its matrix products, from `product_seconds`.
        num_layers: number of its layers. Each also takes time for what are not matrix products.
    """

    products: float
    num_layers: int

    def features(self) -> list[float]:
        return [1.0, float(self.num_layers), self.products]


@dataclass(frozen=True)
class Latency:
    """Predicts milliseconds from costs.

    Attributes:
        weights: by format, what the features of a cost are multiplied by.

    Example:
        >>> latency = Latency.fit({"onnx-int8": [(Cost(0.008, 6), 5.5), (Cost(0.004, 3), 2.8), (Cost(0.001, 1), 0.9)]})
        >>> latency.milliseconds(Cost(0.003, 3), "onnx-int8")
    """

    weights: Mapping[str, Sequence[float]]

    @classmethod
    def fit(cls, measured: Mapping[str, Sequence[tuple[Cost, float]]]) -> "Latency":
        """Fits the weights to measured milliseconds by least squares, none below 0. Relative errors count."""
        nnls = optional("scipy.optimize", "evaluation").nnls
        weights = {}
        for format, points in measured.items():
            features = np.array([cost.features() for cost, _ in points])
            milliseconds = np.array([own for _, own in points])
            scale = features.max(0)
            solution, _ = nnls(features / scale / milliseconds[:, None], np.ones(len(points)))
            weights[format] = (solution / scale).tolist()
        return cls(weights)

    def milliseconds(self, cost: Cost, format: str) -> float:
        return float(np.dot(self.weights[format], cost.features()))

    def fastest(self, cost: Cost) -> list[tuple[str, float]]:
        """The formats and their milliseconds, fastest first."""
        return sorted(((format, self.milliseconds(cost, format)) for format in self.weights), key=lambda own: own[1])


def measure(predictors: Mapping[str, Predictor], inputs: Sequence[Any], rounds: int = ROUNDS) -> dict[str, float]:
    """Measures models that answer one input at a time, with its preparation, such as tokenization.

    In each round every model takes its turn with all inputs, so that a machine that slows down affects all alike.

    Args:
        predictors: models by name.
        inputs: what `Predictor.predict` reads, or `Predictor.embed` for embedding models.
        rounds: measured rounds, after one to warm up.

    Returns:
        By model, the median over the rounds of the mean milliseconds for an input.
    """
    seen: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(WARM_UP + rounds):
        for name, predictor in predictors.items():
            answer = answers(predictor)
            start = perf_counter()
            for own in inputs:
                answer([own])
            if number >= WARM_UP:
                seen[name].append(1e3 * (perf_counter() - start) / len(inputs))
    return {name: statistics.median(own) for name, own in seen.items()}


def answers(predictor: Predictor) -> Callable[[list], Any]:
    """What a service calls for each request."""
    return predictor.embed if predictor.head == EMBEDDING else predictor.predict
