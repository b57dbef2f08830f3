"""Formats the measurements of a benchmark as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from hf_distill.evaluation.tables import markdown_table, models_table, paragraph

Json = dict[str, Any]

PERCENTILES = (50, 95, 99)
"""Latency percentiles in the tables."""


def size_table(models: Mapping[str, Json]) -> str:
    """Parameters, size on disk, memory, cold start and throughput, with one column per model."""
    first = next(iter(models.values()))
    measured = list(models.values())
    speedups = [own["throughput"]["times_as_fast"] for own in measured]
    inputs = {"image": "images", "audio": "recordings"}.get(next(iter(first["latency"])), "texts")
    return models_table(
        list(models),
        {
            "format": [own["format"] for own in measured],
            "parameters": [f"{own['parameters']:,}" for own in measured],
            "MB on disk": [f"{own['bytes_on_disk'] / 1e6:,.1f}" for own in measured],
            "share of the first": [f"{own['bytes_on_disk'] / first['bytes_on_disk']:.2f}" for own in measured],
            "peak memory, MB": [f"{own['peak_memory'] / 1e6:,.0f}" for own in measured],
            "cold start, s": [f"{own['cold_start']:.2f}" for own in measured],
            f"{inputs} per second": [f"{own['throughput']['texts_per_second']:,.1f}" for own in measured],
            "in batches of": [str(own["throughput"]["batch_size"]) for own in measured],
            "times as fast": [f"{ratio['median']:.2f}" for ratio in speedups],
            "lowest to highest": [f"{ratio['lowest']:.2f}-{ratio['highest']:.2f}" for ratio in speedups],
        },
    )


def latency_table(models: Mapping[str, Json]) -> str:
    """One row per length and model, ordered so that the models of one length can be compared."""
    header = ["ms for one input", "tokens", *(f"p{percent}" for percent in PERCENTILES), "times as fast"]
    return markdown_table(
        header,
        [
            [
                name,
                length,
                *(f"{own['latency'][length][f'p{percent}']:.2f}" for percent in PERCENTILES),
                _ratio_cell(own["latency"][length]["times_as_fast"]),
            ]
            for length in next(iter(models.values()))["latency"]
            for name, own in models.items()
        ],
    )


def describe_measuring(settings: Json, on: Json, versions: Mapping[str, str]) -> str:
    """States how the figures were measured, on which machine and with which versions."""
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    how = (
        f"Measured on the CPU with {threads} per model; rounds: {settings['rounds']}, after "
        f"{settings['warm_up_rounds']} for warm-up. In each round the models take turns, with "
        f"{settings['forwards_per_round']} forward passes of one input per length, and {settings['texts']} inputs in "
        f'batches. "Times as fast" compares with the first model: the median over the rounds, with the lowest and the '
        f"highest. Peak memory and cold start are medians over {settings['starts']} separate processes."
    )
    machine = f"{on['cpu']}, {on['cores']} cores, {on['system']}"
    return f"{paragraph(how)}\n\n{paragraph(f'{machine}; {_listed(versions)}.')}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _ratio_cell(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"
