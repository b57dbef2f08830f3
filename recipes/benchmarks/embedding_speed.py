"""Speed of an embedding model in PyTorch, in ONNX Runtime and in int8, and of a student with half of its layers.

    python -m recipes.benchmarks.embedding_speed

measures all-MiniLM-L6-v2 and a student with 3 of its 6 layers on the CPU, tokenising included: one text at a time, and
many texts at the best of several batch sizes. The student is not trained, because weights do not change the speed. The
models take turns in each round, all with the same number of threads. Times on one thread are the processor's own, which
other programs hardly change. The teacher's vectors in each format are compared with those in PyTorch.

fastembed runs the same model in ONNX Runtime. It requires huggingface_hub below 2.0, and constraints.txt has a later
one, with which it runs local models too. It is left out if it is not installed:

    pip install --no-deps fastembed==0.9.1 loguru mmh3 py_rust_stemmers
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_distill import EmbeddingModel, export_model, load_predictor, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    median_ratio,
    print_machine,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.embedding.data import load_teacher, load_texts

TEACHER, STUDENT, NUM_LAYERS = "all-MiniLM-L6-v2", "3 layers of it", 3
PYTORCH, FASTEMBED, FORMATS = "sentence-transformers", "fastembed", ("onnx", "onnx-int8")
BASELINE = f"{TEACHER}, {PYTORCH}"

BATCH_SIZES = (1, 8, 32)
BURST = 20
"""Texts that a model reads one by one in its turn."""

INSTALL = "pip install --no-deps fastembed==0.9.1 loguru mmh3 py_rust_stemmers"

COLUMNS = ["", "ms for one text", "times as fast", "texts per second", "batch size", "times as fast"]
COLUMNS += ["largest difference from the teacher's vectors"]


@dataclass
class Model:
    """A model that is measured.

    Attributes:
        embed: texts and a batch size to vectors, `[texts, width]`.
        batch_sizes: the batch sizes to measure.
    """

    embed: Callable[[list[str], int], np.ndarray]
    batch_sizes: Sequence[int] = BATCH_SIZES


class TokenStates(nn.Module):
    """A transformer whose inputs are positional, and whose output is the last hidden state of each token."""

    def __init__(self, transformer: nn.Module, inputs: Sequence[str]):
        super().__init__()
        self.transformer, self.inputs = transformer, inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.transformer(**dict(zip(self.inputs, tensors, strict=True))).last_hidden_state


def in_pytorch(model: EmbeddingModel) -> Model:
    library = model.to_sentence_transformer()
    return Model(lambda texts, batch_size: library.encode(texts, batch_size=batch_size, show_progress_bar=False))


def exported(model: EmbeddingModel, format: str, folder: Path, threads: int) -> Model:
    export_model(model, folder, format, min_cosine=0.0)
    predictor = load_predictor(folder, threads=threads)
    batch_sizes = (1,) if format == "onnx-int8" else BATCH_SIZES  # int8 always reads one text at a time
    return Model(lambda texts, batch_size: predictor.embed(texts, batch_size=batch_size), batch_sizes)


def in_fastembed(teacher: EmbeddingModel, folder: Path, threads: int) -> Model:
    """The teacher in fastembed, which takes the mean over the tokens and normalises it outside of the graph.

    Raises:
        ModuleNotFoundError: if fastembed is not installed.
    """
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    teacher.save_pretrained(folder)  # the tokenizer, too
    inputs = list(teacher.tokenizer("a text"))
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        TokenStates(teacher.transformer, inputs).eval(),
        tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs),
        folder / "model.onnx",
        input_names=inputs,
        output_names=["last_hidden_state"],
        dynamic_shapes={"tensors": (any_size,) * len(inputs)},
        dynamo=True,
        verbose=False,
    )
    TextEmbedding.add_custom_model(
        model=str(folder),
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=str(folder)),  # not read: the folder is given below
        dim=teacher.embedding_width,
        model_file="model.onnx",
    )
    model = TextEmbedding(str(folder), threads=threads, specific_model_path=str(folder))
    return Model(lambda texts, batch_size: np.stack(list(model.embed(texts, batch_size=batch_size))))


def load_models(teacher: EmbeddingModel, folder: Path, threads: int) -> dict[str, Model]:
    """The models by name, the teacher in PyTorch first. fastembed is left out if it is not installed."""
    models = {}
    for name, model in {TEACHER: teacher, STUDENT: make_student(teacher, NUM_LAYERS, "spread")}.items():
        models[f"{name}, {PYTORCH}"] = in_pytorch(model)
        for format in FORMATS:
            models[f"{name}, `{format}`"] = exported(model, format, folder / f"{name} {format}", threads)
    try:
        models[f"{TEACHER}, {FASTEMBED}"] = in_fastembed(teacher, folder / FASTEMBED, threads)
    except ModuleNotFoundError as error:
        print(f"fastembed is left out, because {error.name} is not installed: {INSTALL}", file=sys.stderr)
    return models


def measure(
    models: dict[str, Model], texts: list[str], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, Any]]:
    """Milliseconds for one text, and texts per second by batch size, of each model by round. One round warms up."""

    def seconds(model: Model, own: list[str], batch_size: int) -> float:
        start = clock()
        model.embed(own, batch_size)
        return clock() - start

    measured: dict[str, dict[str, Any]] = {
        name: {"milliseconds": [], "texts_per_second": {size: [] for size in model.batch_sizes}}
        for name, model in models.items()
    }
    for number in range(rounds + 1):
        one_by_one = [texts[(number * BURST + index) % len(texts)] for index in range(BURST)]
        for name, model in models.items():
            model.embed(texts[:1], 1)  # not timed: threads of the model before may still be spinning
            milliseconds = statistics.median(1000 * seconds(model, [text], 1) for text in one_by_one)
            rates = {size: len(texts) / seconds(model, texts, size) for size in model.batch_sizes}
            if number:
                measured[name]["milliseconds"].append(milliseconds)
                for size, rate in rates.items():
                    measured[name]["texts_per_second"][size].append(rate)
    return measured


def run(teacher: EmbeddingModel, texts: list[str], output: Path, rounds: int, threads: int) -> None:
    """Prints the table, and writes the figures of each model to `output`."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        models = load_models(teacher, Path(folder), threads)
        vectors = {name: model.embed(texts, max(BATCH_SIZES)) for name, model in models.items()}
        measured = measure(models, texts, rounds, time.process_time if threads == 1 else time.perf_counter)
    for name, own in measured.items():
        if name.startswith(TEACHER) and name != BASELINE:
            own["largest_difference"] = float(np.abs(vectors[name] - vectors[BASELINE]).max())
    rows = [_row(name, own, measured[BASELINE]) for name, own in measured.items()]
    print(f"\n{len(texts):,} texts, medians over {rounds} rounds\n\n{table(COLUMNS, rows)}\n")
    packages = [*PACKAGES, "sentence-transformers", "onnxruntime"]
    packages += [FASTEMBED] if f"{TEACHER}, {FASTEMBED}" in measured else []
    on, versions = print_machine("device", "threads"), print_versions(packages)
    write_json(output, {"machine": on, "versions": versions, "texts": len(texts), "rounds": rounds, "models": measured})


def _row(name: str, own: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    size, rates = _best(own)
    difference = own.get("largest_difference")
    return [
        name,
        f"{statistics.median(own['milliseconds']):.1f}",
        f"{median_ratio(baseline['milliseconds'], own['milliseconds']):.2f}",
        f"{statistics.median(rates):.0f}",
        str(size),
        f"{median_ratio(rates, _best(baseline)[1]):.2f}",
        "" if difference is None else f"{difference:.1e}",
    ]


def _best(own: dict[str, Any]) -> tuple[int, list[float]]:
    """The batch size with the most texts per second, and those of each round."""
    return max(own["texts_per_second"].items(), key=lambda item: statistics.median(item[1]))


@explains_fetch_errors
def main() -> int:
    parser = make_parser("embedding_speed", __doc__)
    add_fetched(parser)
    parser.add_argument("--texts", type=int, default=100, help="number of texts (default: 100)")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each model (default: 1)")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # those of the tokenizers
    silence()
    teacher, texts = load_teacher(options.fetched), load_texts(options.fetched).held_out[: options.texts]
    run(teacher, texts, options.output, options.rounds, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
