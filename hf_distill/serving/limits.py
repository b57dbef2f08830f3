"""What a service takes at most, and how long it may take: one home for every bound."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any


def _bound(default: int | float, unit: str, help: str) -> Any:  # a field of either type
    return field(default=default, metadata={"unit": unit, "help": help})


@dataclass(frozen=True)
class Limits:
    """The bounds of a service. Each is an option of `hf-distill serve`.

    Raises:
        ValueError: if one is not above 0 (`max_delay` may be 0), or if the queue does not hold one request.
    """

    # of one request
    max_body: int = _bound(1 << 20, "BYTES", "of a request's body")
    max_texts: int = _bound(64, "N", "in a request")
    max_characters: int = _bound(100_000, "N", "of one text; of what the model cannot take the end is left out")
    receive_timeout: float = _bound(10.0, "SECONDS", "for a client to send its request")
    timeout: float = _bound(30.0, "SECONDS", "for an answer, and for one batch in a worker")

    # of all of them together
    max_queue: int = _bound(4096, "N", "texts that wait; a request for which there is no room is refused")
    max_wait: float = _bound(5.0, "SECONDS", "that a request should wait for its answer; beyond, it is refused at once")
    max_batch_tokens: int = _bound(1024, "N", "that a worker is given at once, about, if they are of several texts")
    max_delay: float = _bound(0.0, "SECONDS", "that a text waits for others while a worker is idle")

    def __post_init__(self):
        for bound in dataclasses.fields(self):
            value = getattr(self, bound.name)
            if value < 0 or (value == 0 and bound.name != "max_delay"):
                raise ValueError(f"{bound.name} is {value}: it should be above 0.")
        if self.max_queue < self.max_texts:
            raise ValueError(
                f"max_queue is {self.max_queue}: it should hold a request of max_texts, which are {self.max_texts}."
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
