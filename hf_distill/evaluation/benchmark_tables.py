"""The figures of a benchmark as tables in Markdown."""

from collections.abc import Mapping
from typing import Any

from hf_distill.evaluation.tables import markdown_table

Json = dict[str, Any]

PERCENTILES = (50, 95, 99)
"""Of a latency."""


def size_table(models: Mapping[str, Json]) -> str:
    """Parameters, bytes, cold start and throughput, a row for each model."""
    first = next(iter(models.values()))
    header = ["", "format", "parameters", "MB on disk", "of the first", "peak memory, MB", "cold start, s"]
    header += ["texts per s", "in batches of", "times as fast"]
    return markdown_table(
        header,
        [
            [
                name,
                own["format"],
                f"{own['parameters']:,}",
                f"{own['bytes_on_disk'] / 1e6:,.1f}",
                f"{own['bytes_on_disk'] / first['bytes_on_disk']:.2f}",
                f"{own['peak_memory'] / 1e6:,.0f}",
                f"{own['cold_start']:.2f}",
                f"{own['throughput']['texts_per_second']:,.1f}",
                str(own["throughput"]["batch_size"]),
                _ratio_cell(own["throughput"]["times_as_fast"]),
            ]
            for name, own in models.items()
        ],
    )


def latency_table(models: Mapping[str, Json]) -> str:
    """A row for each length and model, so that models stand beneath each other."""
    header = ["milliseconds for one text", "tokens", *(f"p{percent}" for percent in PERCENTILES), "times as fast"]
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
    """What the figures are, on what machine they were measured, and with what."""
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    return (
        f"On the CPU with {threads} for each model. Rounds: {settings['rounds']}, after {settings['warm_up_rounds']} "
        f"that warms up; in each the models take turns, with {settings['forwards_per_round']} forwards of one text for "
        f"each length, and {settings['texts']} texts in batches. Times as fast as the first model: the median over the "
        f"rounds, and in brackets the lowest and the highest. Peak memory and cold start: of processes of their own, "
        f"medians of {settings['starts']}.\n\n"
        f"{on['cpu']}, {on['cores']} cores, {on['system']}; "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}."
    )


def _ratio_cell(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"
