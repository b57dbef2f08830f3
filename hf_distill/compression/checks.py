"""Checks of a search before any student is trained."""

import json
from typing import TYPE_CHECKING

from hf_distill.compression.data import Parts
from hf_distill.compression.settings import DEFAULT_FORMATS, Settings
from hf_distill.deployment.formats import FORMATS
from hf_distill.files import read_json, write_json
from hf_distill.optional import optional
from hf_distill.training.checkpoints.runs import data_identity, model_identity

if TYPE_CHECKING:
    from hf_distill.compression.costs import Costs

IDENTITY = "identity.json"


def check_identity(settings: Settings, metric: str, parts: Parts) -> None:
    """A folder holds one search: teacher, data and what is measured stay the same."""
    file = settings.folder / IDENTITY
    own = {
        "teacher": model_identity(settings.teacher),
        "task": settings.data.task,
        "metric": metric,
        "formats": settings.formats and list(settings.formats),
        "sampler": settings.sampler,
        "seed": settings.seed,
        **{f"{part}_data": data_identity(part, getattr(parts, part)) for part in ("train", "validation", "test")},
    }
    own = json.loads(json.dumps(own, default=str))
    if not file.is_file():
        write_json(file, own)
    elif changed := [name for name, value in read_json(file).items() if own.get(name) != value]:
        raise ValueError(
            f"{settings.output} has a search with another {', '.join(changed)}: choose another folder, or remove "
            f"{settings.folder}. Only keep, the limits, the budget and the workers may change."
        )


def check_packages(settings: Settings) -> None:
    """Raises `ImportError` if a package is missing that is needed after minutes only."""
    optional("optuna", "compress")
    settings.task.check_packages("matplotlib.figure", "scipy.stats")
    for name in settings.formats or DEFAULT_FORMATS:
        for module in FORMATS[name].packages:
            optional(module, FORMATS[name].extra or "compress")


def check_limits(settings: Settings, costs: "Costs") -> None:
    """Checks that some student is within the limits, before any is trained."""
    directions = costs.workshop.directions
    smallest = directions.shares(0.0, 0.0, 0.0)
    format, milliseconds = costs.latency.fastest(costs.cost(smallest))[0]
    if settings.max_ms is not None and milliseconds > settings.max_ms:
        raise ValueError(
            f"max_ms={settings.max_ms:g} cannot be met: the smallest student that this search cuts takes about "
            f"{milliseconds:.2f} ms in {format} (the teacher {costs.teacher_ms:.2f} ms in PyTorch)."
        )
    if settings.max_mb is not None:
        vocabulary = list(costs.workshop.rows)[-1]
        megabytes = min(costs.megabytes(smallest, vocabulary, own) for own in costs.workshop.formats)
        if megabytes > settings.max_mb:
            raise ValueError(
                f"max_mb={settings.max_mb:g} cannot be met: the smallest student that this search cuts has about "
                f"{megabytes:.1f} MB."
            )
