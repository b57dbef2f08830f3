"""What a search is asked for, as its folder records it."""

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.deployment.formats import FORMATS, PYTORCH
from hf_distill.files import read_json, write_json
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.registry import task_named
from hf_distill.tasks.task import Task

SEARCH = "search"
"""Folder in the output folder with everything that a search writes before its answer."""

FILE = "settings.json"

SAMPLERS = ("tpe", "random")

DEFAULT_FORMATS = ("onnx-int8", "onnx", PYTORCH)
"""The formats of models that do not generate text."""

VALIDATION_SHARE = 0.4
"""Share of the test rows that choose the model, unless there is other validation data."""

UNITS = {"h": 3600, "m": 60, "min": 60, "s": 1, "": 1}


@dataclass(frozen=True)
class Settings:
    """The arguments of `compress`, with the budget in seconds."""

    teacher: str
    data: TaskArguments
    output: Path
    keep: float
    metric: str | None
    max_ms: float | None
    max_mb: float | None
    budget: float
    formats: tuple[str, ...] | None
    workers: int
    threads: int
    storage: str | None
    sampler: str
    seed: int

    def check(self) -> None:
        """Raises `ValueError` for what can be seen before any file is read."""
        if not 0 < self.keep < 1:
            raise ValueError(
                f"keep={self.keep} must be between 0 and 1, such as 0.97: the share of the teacher's quality. That all "
                f"of it is kept cannot be shown on any number of rows."
            )
        if not self.data.test_file and not self.data.test_split:
            raise ValueError(
                "keep is shown on test rows: give test_file, labelled rows that neither the "
                "teacher nor its students are trained on."
            )
        if self.data.model_name_or_path or self.data.stages or self.data.lora_rank:
            raise ValueError(
                "compress cuts its students from the teacher: leave out model_name_or_path, stages and lora_rank."
            )
        for name, value in {"max_ms": self.max_ms, "max_mb": self.max_mb}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be above 0.")
        if self.workers < 1 or self.threads < 1:
            raise ValueError(f"workers={self.workers} and threads={self.threads} must be 1 or more.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler!r} must be one of {', '.join(SAMPLERS)}.")
        for format in self.formats or ():
            if format not in FORMATS:
                raise ValueError(f"formats has {format!r}, but must have some of {', '.join(FORMATS)}.")
        if not self.task.takes_stored_targets:
            raise ValueError(
                f"compress stores the teacher's outputs once for all students, which {self.task.name} does not "
                f"support: use make_student and hf-distill train."
            )

    @property
    def task(self) -> Task:
        return task_named(self.data.task)

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return self.output / SEARCH

    @property
    def database(self) -> str:
        """Where Optuna stores the study."""
        return self.storage or f"sqlite:///{(self.folder / 'study.db').absolute()}"

    def tried_formats(self, generates: bool) -> tuple[str, ...]:
        """The formats that students are measured in.

        Args:
            generates: whether the models generate text, which few formats can.

        Raises:
            ValueError: if a format that was asked for cannot.
        """
        usable = [name for name, format in FORMATS.items() if format.generates or not generates]
        if refused := sorted(set(self.formats or ()) - set(usable)):
            raise ValueError(
                f"formats has {', '.join(refused)}, but a model that generates has only {', '.join(usable)}."
            )
        return self.formats or (tuple(usable) if generates else DEFAULT_FORMATS)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FILE, self.as_json())

    def asked(self) -> dict[str, Any]:
        """What was asked for, without local paths."""
        paths = ("teacher", "data", "output", "storage")
        return {name: value for name, value in self.as_json().items() if name not in paths}

    def as_json(self) -> dict[str, Any]:
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        formats = self.formats and list(self.formats)
        return content | {"data": dataclasses.asdict(self.data), "output": str(self.output), "formats": formats}

    @classmethod
    def read(cls, output: Path) -> "Settings":
        """The settings of the search in an output folder.

        Raises:
            ValueError: if there is none.
        """
        file = output / SEARCH / FILE
        if not file.is_file():
            raise ValueError(
                f"{output} has no search: start one with hf-distill compress TEACHER --output {output} ..."
            )
        content = read_json(file)
        data = task_named(content["data"]["task"]).arguments(**content["data"])
        formats = content["formats"] and tuple(content["formats"])
        return cls(**content | {"data": data, "output": output, "formats": formats})


def seconds_of(budget: str | float) -> float:
    """Reads a budget such as `"1h"`, `"30m"`, `"1h30m"` or `"90s"`, or a number of seconds.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(budget, str):
        found = re.findall(r"([\d.]+)\s*(h|min|m|s|$)", budget.strip())
        if not found or "".join("".join(own) for own in found) != budget.replace(" ", ""):
            raise ValueError(f"budget={budget!r} must be a time such as 1h, 30m, 1h30m or 90s.")
        budget = sum(float(number) * UNITS[unit] for number, unit in found)
    if budget <= 0:
        raise ValueError(f"budget={budget} must be above 0.")
    return float(budget)


class Clock:
    """The time of a search, which goes on where a killed run stopped.

    Attributes:
        budget: seconds of the whole search.
        file: records the seconds that were used.
    """

    def __init__(self, budget: float, file: Path):
        self.budget, self.file = budget, file
        earlier = read_json(file)["seconds"] if file.is_file() else 0.0
        self.started = time.time() - earlier

    def used(self) -> float:
        return time.time() - self.started

    def left(self) -> float:
        return self.budget - self.used()

    def record(self) -> None:
        """Writes how much was used."""
        write_json(self.file, {"seconds": self.used()})
