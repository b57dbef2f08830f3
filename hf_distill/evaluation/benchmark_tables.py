"""The figures of a benchmark as tables in Markdown."""

from collections.abc import Mapping
from typing import Any

from hf_distill.evaluation.tables import markdown_table, models_table, paragraph

Json = dict[str, Any]

PERCENTILES = (50, 95, 99)
"""Of a latency."""


def size_table(models: Mapping[str, Json]) -> str:
    """Parameters, bytes, cold start and throughput, a column for each model."""
    first = next(iter(models.values()))
    measured = list(models.values())
    speedups = [own["throughput"]["times_as_fast"] for own in measured]
    return models_table(
        list(models),
        {
            "format": [own["format"] for own in measured],
            "parameters": [f"{own['parameters']:,}" for own in measured],
            "MB on disk": [f"{own['bytes_on_disk'] / 1e6:,.1f}" for own in measured],
            "share of the first": [f"{own['bytes_on_disk'] / first['bytes_on_disk']:.2f}" for own in measured],
            "peak memory, MB": [f"{own['peak_memory'] / 1e6:,.0f}" for own in measured],
            "cold start, s": [f"{own['cold_start']:.2f}" for own in measured],
            "texts per second": [f"{own['throughput']['texts_per_second']:,.1f}" for own in measured],
            "in batches of": [str(own["throughput"]["batch_size"]) for own in measured],
            "times as fast": [f"{ratio['median']:.2f}" for ratio in speedups],
            "lowest to highest": [f"{ratio['lowest']:.2f}-{ratio['highest']:.2f}" for ratio in speedups],
        },
    )


def latency_table(models: Mapping[str, Json]) -> str:
    """Milliseconds, a row for each length and model, so that models stand beneath each other."""
    header = ["ms for one text", "tokens", *(f"p{percent}" for percent in PERCENTILES), "times as fast"]
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
    """How the figures were measured, on what machine, and with what."""
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    how = (
        f"On the CPU with {threads} for each model. Rounds: {settings['rounds']}, after {settings['warm_up_rounds']} "
        f"to warm up. In each round the models take turns: {settings['forwards_per_round']} forwards of one text for "
        f"each length, and {settings['texts']} texts in batches. Times as fast: the median over the rounds of the "
        f"ratio to the first model, with the lowest and the highest. Peak memory and cold start: medians of "
        f"{settings['starts']} processes that only load the model and read texts."
    )
    machine = f"{on['cpu']}, {on['cores']} cores, {on['system']}"
    return f"{paragraph(how)}\n\n{paragraph(f'{machine}; {_listed(versions)}.')}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _ratio_cell(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"
