"""All limits of a service: sizes and times."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any


def _bound(default: int | float, unit: str, help: str) -> Any:  # a field of either type
    return field(default=default, metadata={"unit": unit, "help": help})


@dataclass(frozen=True)
class Limits:
    """The limits of a service. Each is an option of `hf-distill serve`.

    Raises:
        ValueError: if a limit is not above 0 (`max_delay` may be 0), or if the queue cannot hold one request.
    """

    # per request
    max_body: int = _bound(1 << 20, "BYTES", "largest request body")
    max_file_body: int = _bound(10 << 20, "BYTES", "largest request body for a model that reads images or recordings")
    max_texts: int = _bound(64, "N", "most texts per request")
    max_documents: int = _bound(256, "N", "most documents per request to /rerank, or texts to embed; at most max_queue")
    max_characters: int = _bound(100_000, "N", "most characters per text; the model truncates texts that are too long")
    receive_timeout: float = _bound(10.0, "SECONDS", "longest time for a client to send its request")
    timeout: float = _bound(30.0, "SECONDS", "longest time for an answer, and for one batch in a worker")

    # for all requests together
    max_queue: int = _bound(4096, "N", "most waiting texts; requests that do not fit are refused")
    max_wait: float = _bound(5.0, "SECONDS", "longest expected wait; requests that would wait longer are refused")
    max_batch_tokens: int = _bound(1024, "N", "about the most tokens per batch, except for a single long text")
    max_delay: float = _bound(0.0, "SECONDS", "how long a text waits for others to form a batch while a worker is idle")

    def __post_init__(self):
        for bound in dataclasses.fields(self):
            value = getattr(self, bound.name)
            if value < 0 or (value == 0 and bound.name != "max_delay"):
                raise ValueError(f"{bound.name} is {value}: it must be above 0.")
        if self.max_queue < self.max_texts:
            raise ValueError(
                f"max_queue is {self.max_queue}: it must be at least max_texts={self.max_texts}, to hold one request."
            )

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("limits")
        for bound in dataclasses.fields(cls):
            group.add_argument(
                f"--{bound.name.replace('_', '-')}",
                metavar=bound.metadata["unit"],
                type=bound.type,
                default=bound.default,
                help=f"{bound.metadata['help']} (default: {bound.default:,})",
            )

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "Limits":
        return cls(**{bound.name: getattr(options, bound.name) for bound in dataclasses.fields(cls)})
