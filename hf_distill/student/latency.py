"""Predicts how long models take that need not have weights, from measured matrix products of the same shapes."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

Product = tuple[int, int]
"""The number of inputs and of outputs of a linear layer."""

LARGEST = 2**22
"""Most weights of a product that is measured. Of a larger one, some outputs are measured, and the time is scaled."""

SECONDS = 2.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 20


def product_seconds(
    models: Sequence[nn.Module],
    num_tokens: int = 128,
    measure: Callable[[Collection[Product], int], Mapping[Product, float]] | None = None,
) -> list[float]:
    """Predicts the time of the matrix products in one forward, on one thread of this machine's CPU in fp32.

    Products of each shape are measured once for all models, and summed over the linear layers. All else takes time
    too: attention between tokens, convolutions, experts that share one weight, normalisations.

    Args:
        models: models with or without weights.
        num_tokens: length of the one text in the batch.
        measure: gives the seconds of each product for this number of tokens. Default: `measure_products`.

    Returns:
        Seconds for each model.

    Example:
        >>> teacher_seconds, student_seconds = product_seconds([teacher, student])
    """
    products = [products_of(model) for model in models]
    seconds = (measure or measure_products)(set().union(*products), num_tokens)
    return [sum(seconds[product] * times for product, times in own.items()) for own in products]


def products_of(model: nn.Module) -> Counter[Product]:
    """How often a forward multiplies with a matrix of each shape. Each linear layer counts once."""
    products: Counter[Product] = Counter()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            products[module.in_features, module.out_features] += 1
        elif isinstance(module, Conv1D):
            products[module.nx, module.nf] += 1
    return products


def measure_products(
    products: Collection[Product], num_tokens: int, clock: Callable[[], float] = perf_counter
) -> dict[Product, float]:
    """Measures the seconds of matrix products on one thread of the CPU in fp32.

    Several threads wait for each other. On a busy machine, or in a container with fewer cores than torch sees, this
    would be most of the time of a small product.

    In each round all products take their turn, after a first round to warm up. Other work on the machine can only make
    a product slower, so the fastest round counts. The rounds take two seconds at most, longer only for very large
    models. As in a model with many layers, the weights are mostly not in the CPU's cache.

    Args:
        products: the shapes.
        num_tokens: number of rows that are multiplied with each matrix.
        clock: gives the time in seconds.
    """
    measured = {(inputs, outputs): min(outputs, max(1, LARGEST // inputs)) for inputs, outputs in products}
    largest = max((inputs * part for (inputs, _), part in measured.items()), default=0)
    memory = torch.ones(2 * largest, device="cpu", dtype=torch.float32)
    rows = {inputs: torch.ones(num_tokens, inputs, device="cpu", dtype=torch.float32) for inputs, _ in measured}
    seconds: dict[Product, list[float]] = {product: [] for product in measured}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin, start = clock(), 0
        with torch.inference_mode():
            for number in range(MOST_ROUNDS + 1):
                if number > FEWEST_ROUNDS and clock() - begin > SECONDS:
                    break
                for (inputs, outputs), part in measured.items():
                    start = (start + inputs * part) % (largest + 1)
                    weight = memory[start : start + inputs * part].view(part, inputs)
                    before = clock()
                    F.linear(rows[inputs], weight)
                    if number > 0:
                        seconds[inputs, outputs].append((clock() - before) * outputs / part)
    finally:
        torch.set_num_threads(threads)
    return {product: min(times) for product, times in seconds.items()}
