"""Compares the size and speed of models and exports on the CPU."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download

from hf_distill.deployment.backends import Arrays, available_cores
from hf_distill.deployment.formats import FORMATS, PYTORCH
from hf_distill.deployment.json_inputs import to_json
from hf_distill.deployment.locating import weights_in
from hf_distill.deployment.manifest import is_export, read_manifest
from hf_distill.deployment.parity_inputs import built_in_inputs
from hf_distill.deployment.parity_texts import with_questions
from hf_distill.deployment.predictor import Predictor, load_predictor
from hf_distill.deployment.text_encoder import windows_of
from hf_distill.evaluation.benchmark_inputs import (
    FILES,
    Length,
    exact_input,
    lengths_to_measure,
    reads_of,
    repeated,
)
from hf_distill.evaluation.benchmark_tables import PERCENTILES, Json, describe_measuring, latency_table, size_table
from hf_distill.files import write_json, write_whole
from hf_distill.machine import machine, versions
from hf_distill.progress import Progress, track

BATCH_SIZES = (1, 4, 8, 16, 32)
BURST = 10
"""Measured forward passes of a model in a row."""

WARM_UP_ROUNDS = 1

STARTS = 3
"""Measured process starts per model. One unmeasured start before them fills the file system's cache."""


@dataclass(frozen=True)
class Benchmark:
    """The measurements of `benchmark_models`. `dataclasses.asdict` turns them into JSON.

    Attributes:
        models: measurements by model name. The first model is the baseline of every ratio. Keys: `format`,
            `parameters`, `bytes_on_disk`, `peak_memory` in bytes, `cold_start` in seconds, `imports_torch`, `latency`
            in milliseconds by number of tokens, and `throughput` in texts per second, by batch size and at the best
            batch size. `times_as_fast` is the median speed-up over the first model, with `lowest` and `highest`.
        settings: how the models were measured: threads, rounds and so on.
        machine: CPU, cores and operating system.
        versions: versions of Python and of the packages that ran the models.

    Example:
        >>> measured = benchmark_models({"teacher": "outputs/teacher", "int8": "outputs/student-int8"})
        >>> measured.write("benchmark")
    """

    models: dict[str, Json]
    settings: Json
    machine: Json
    versions: dict[str, str]

    def table(self) -> str:
        """Returns the sizes and the latencies as two Markdown tables, and how they were measured."""
        measuring = describe_measuring(self.settings, self.machine, self.versions)
        return f"{size_table(self.models)}\n\n{latency_table(self.models)}\n\n{measuring}"

    def write(self, folder: str | Path) -> None:
        """Writes `benchmark.json` and the tables, `benchmark.md`, into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "benchmark.json", dataclasses.asdict(self))
        write_whole(folder / "benchmark.md", self.table() + "\n")


def benchmark_models(
    models: Mapping[str, str | Path],
    *,
    lengths: Sequence[int] | None = None,
    texts: Sequence[Any] | None = None,
    threads: int | None = None,
    rounds: int = 10,
) -> Benchmark:
    """Compares the size and speed of models and exports on the CPU, where most students run.

    - Size: parameters, and bytes of the files that hold the weights or the graph.
    - Memory and cold start: measured in a separate process that only loads the model and classifies texts one by one.
      Memory is the peak of that process. Cold start is the time from process start to the first answer.
    - Latency: one text at a time, at fixed numbers of tokens, without tokenization.
    - Throughput: whole texts with tokenization, in batches of similar length, for several batch sizes. ONNX int8
      models run one text at a time, as in `load_predictor`.

    In each round every model takes its turn at every length and batch size, so a machine that slows down affects all
    models alike. The speed-up over the first model is computed within each round; the median over the rounds is
    reported.

    Args:
        models: by the name for the tables, anything that `load_predictor` accepts. A folder that holds a model counts
            as that model, even if it also holds exports. The first model is the baseline.
        lengths: text lengths for the latency, in tokens, including special tokens. Default: 16, 64, 128 and 256, as
            far as all models accept them. Images have one size, so leave it out for models that read images.
        texts: real texts or pairs of texts, joined or cut to reach a given length; if all models read pairs, a text
            gets a question. Or images, as in `Predictor.predict`. Default: built-in prose, or drawn images.
        threads: threads per forward pass, the same for all models. Default: all cores available to this process.
        rounds: measured rounds. One unmeasured round before them warms up.

    Returns:
        The measurements, by model.

    Raises:
        ValueError: if a model does not exist or accepts fewer tokens than a length, or if a text is empty.
        ImportError: if a package that a model's format needs is missing.

    Example:
        >>> measured = benchmark_models({"teacher": "outputs/teacher", "int8": "outputs/student-int8"})
        >>> measured.models["int8"]["latency"]["128"]["times_as_fast"]["median"]
        >>> print(measured.table())
    """
    threads = available_cores() if threads is None else threads
    _check(models, texts, threads, rounds)
    torch_threads = torch.get_num_threads()
    try:
        runners = {name: Runner.load(name, *locate_model(model), threads) for name, model in models.items()}
        predictors = {name: runner.predictor for name, runner in runners.items()}
        measured_lengths = lengths_to_measure(predictors, lengths)
        texts = built_in_inputs(reads_of(predictors)) if texts is None else texts
        if all(predictor.reads_pairs for predictor in predictors.values()):
            texts = with_questions(texts)
        texts = repeated(texts)
        for runner in runners.values():
            runner.prepare(texts, measured_lengths)
        in_turn = track(list(runners.values()), "Starting processes", "models", only_if_long=True)
        starts = {runner.name: _starts(runner, texts, threads) for runner in in_turn}
        seen = _rounds(list(runners.values()), texts, measured_lengths, rounds)
    finally:
        torch.set_num_threads(torch_threads)
    first = next(iter(runners))
    measured = {
        name: {
            "format": runner.predictor.format,
            "parameters": runner.predictor.num_parameters,
            "bytes_on_disk": bytes_on_disk(runner.folder),
            **starts[name],
            **_speed(seen[name], seen[first]),
        }
        for name, runner in runners.items()
    }
    settings = {
        "device": "cpu",
        "threads": threads,
        "rounds": rounds,
        "warm_up_rounds": WARM_UP_ROUNDS,
        "forwards_per_round": BURST,
        "starts": STARTS,
        "lengths": list(measured_lengths),
        "texts": len(texts),
    }
    return Benchmark(measured, settings, machine(), versions())


def name_models(models: Sequence[str | Path], names: Sequence[str] | None = None) -> dict[str, str | Path]:
    """Names the models for the tables: `names`, or by default their folder or Hub names.

    Raises:
        ValueError: if the number of names differs from the number of models, or if two names are the same.
    """
    names = names or [Path(model).absolute().name if Path(model).is_dir() else str(model) for model in models]
    if len(names) != len(models):
        raise ValueError(f"Names given: {len(names)}, models given: {len(models)}. Give one --name per model.")
    if len(set(names)) < len(names):
        raise ValueError(f"Two models have the same name ({', '.join(names)}): give each model its own --name.")
    return dict(zip(names, models, strict=True))


def locate_model(model: str | Path) -> tuple[Path, str]:
    """Finds the folder of a model or an export, and the format to load it in.

    A folder that holds a model is loaded as that model, even if it also holds exports.

    Raises:
        ValueError: if the model is neither a local folder nor on the Hub.
    """
    folder = Path(model)
    if not folder.is_dir():
        load_predictor(model)  # downloads it, or raises
        folder = Path(snapshot_download(str(model), local_files_only=True))
    has_weights = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder, PYTORCH if has_weights and not is_export(folder) else "auto"


def bytes_on_disk(folder: Path) -> int:
    """Bytes of the files that hold a model's weights or its graph."""
    if is_export(folder):
        return sum(read_manifest(folder).files.values())
    return sum(file.stat().st_size for file in weights_in(folder))


@dataclass
class Seen:
    """Timings of a model by round: milliseconds by length, and texts per second by batch size."""

    latencies: dict[Length, list[list[float]]] = field(default_factory=dict)
    throughputs: dict[int, list[float]] = field(default_factory=dict)


@dataclass
class Runner:
    """A model that is measured.

    Attributes:
        batches: by length, the inputs of `BURST` measured forward passes and of one unmeasured pass before them.
    """

    name: str
    folder: Path
    predictor: Predictor
    batches: dict[Length, list[Arrays]] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, folder: Path, format: str, threads: int) -> "Runner":
        return cls(name, folder, load_predictor(folder, format, threads))

    def prepare(self, texts: Sequence[Any], lengths: Sequence[Length]) -> None:
        encodings = self.predictor.encoder.encode(texts)  # raises for an invalid text before the long measurement
        for length in lengths:
            if length in FILES:
                self.batches[length] = [self.predictor.encoder.pad([own]) for own in encodings[: BURST + 1]]
                continue
            assert isinstance(length, int)
            self.batches[length] = [
                exact_input(self.predictor, [*texts[number:], *texts[:number]], length, self.name)
                for number in range(BURST + 1)
            ]

    @property
    def batch_sizes(self) -> Sequence[int]:
        """The batch sizes to measure: up to the one that the predictor uses."""
        return [size for size in BATCH_SIZES if size <= FORMATS[self.predictor.format].batch_size]

    def burst(self, length: Length) -> list[float]:
        """Milliseconds of each of `BURST` forward passes of one text."""
        seconds = [_seconds(partial(self.predictor.backend, batch)) for batch in self.batches[length]]
        # The first pass is not measured: the worker threads of PyTorch and ONNX Runtime keep spinning for a while after
        # a forward pass, which slows the next model, whose own threads are still asleep.
        return [1000 * own for own in seconds[1:]]

    def texts_per_second(self, texts: Sequence[Any], batch_size: int) -> float:
        self.predictor.backend(next(iter(self.batches.values()))[0])  # wakes the threads, as in `burst`
        return len(texts) / _seconds(lambda: self._read(texts, batch_size))

    def _read(self, texts: Sequence[Any], batch_size: int) -> None:
        encodings = sorted(windows_of(self.predictor.encoder.encode(texts)), key=len)
        for start in range(0, len(encodings), batch_size):
            self.predictor.backend(self.predictor.encoder.pad(encodings[start : start + batch_size]))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`p50`, `p95` and `p99`, linearly interpolated."""
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES}


def ratio_over_rounds(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios computed within each round."""
    ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _check(models: Mapping[str, str | Path], texts: Sequence[Any] | None, threads: int, rounds: int) -> None:
    if not models:
        raise ValueError("No model to measure: give at least one.")
    if texts is not None and not len(texts):
        raise ValueError("texts is empty: give a few dozen texts, or leave the argument out for the built-in ones.")
    for name, value in {"threads": threads, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more.")


def _starts(runner: Runner, texts: Sequence[Any], threads: int) -> Json:
    """Peak memory and cold start, each the median over several separate processes."""
    command = [sys.executable, "-m", "hf_distill.deployment.cold_start"]
    command += [str(runner.folder), runner.predictor.format, str(threads)]
    given = json.dumps([*map(to_json, texts)])
    starts = [_start(runner.name, command, given) for _ in range(STARTS + 1)][1:]
    return {
        "peak_memory": int(statistics.median(start["peak_memory"] for start in starts)),
        "cold_start": statistics.median(start["seconds"] for start in starts),
        "imports_torch": starts[0]["imports_torch"],
    }


def _start(name: str, command: list[str], texts: str) -> Json:
    started = time.monotonic()  # this clock is the same in all processes
    run = subprocess.run(
        command, input=texts, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if run.returncode:
        said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        raise ValueError(f"{name} failed in a separate process: {said[-1]}")
    told = json.loads(run.stdout.splitlines()[-1])
    return {**told, "seconds": told["answered"] - started}


def _rounds(runners: Sequence[Runner], texts: Sequence[Any], lengths: Sequence[Length], rounds: int) -> dict[str, Seen]:
    seen = {runner.name: Seen() for runner in runners}
    turns = [(size, runner) for size in BATCH_SIZES for runner in runners if size in runner.batch_sizes]
    num_turns = (WARM_UP_ROUNDS + rounds) * (len(lengths) * len(runners) + len(turns))
    with Progress("Measuring", num_turns, "turns", only_if_long=True) as progress:
        for number in range(WARM_UP_ROUNDS + rounds):
            counts = number >= WARM_UP_ROUNDS
            for length in lengths:
                for runner in runners:
                    milliseconds = runner.burst(length)
                    progress.update()
                    if counts:
                        seen[runner.name].latencies.setdefault(length, []).append(milliseconds)
            for batch_size, runner in turns:
                rate = runner.texts_per_second(texts, batch_size)
                progress.update()
                if counts:
                    seen[runner.name].throughputs.setdefault(batch_size, []).append(rate)
    return seen


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _speed(own: Seen, first: Seen) -> Json:
    latency = {
        str(length): {
            **percentiles([value for burst in bursts for value in burst]),
            "times_as_fast": ratio_over_rounds(_medians(first.latencies[length]), _medians(bursts)),
        }
        for length, bursts in own.latencies.items()
    }
    best, firsts_best = _best_batch_size(own), _best_batch_size(first)
    by_batch_size = {str(size): statistics.median(rates) for size, rates in own.throughputs.items()}
    throughput = {
        "batch_size": best,
        "texts_per_second": by_batch_size[str(best)],
        "times_as_fast": ratio_over_rounds(own.throughputs[best], first.throughputs[firsts_best]),
        "by_batch_size": by_batch_size,
    }
    return {"latency": latency, "throughput": throughput}


def _medians(bursts: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(burst) for burst in bursts]


def _best_batch_size(seen: Seen) -> int:
    return max(seen.throughputs, key=lambda size: statistics.median(seen.throughputs[size]))
