"""Checks of a search before any student is trained."""

import json

from hf_distill.compression.costs import Costs
from hf_distill.compression.settings import Settings
from hf_distill.compression.workshop import Workshop
from hf_distill.files import read_json, write_json
from hf_distill.training.checkpoints.runs import data_identity, model_identity

IDENTITY = "identity.json"


def check_identity(workshop: Workshop) -> None:
    """A folder holds one search: teacher, data and what is measured stay the same."""
    settings, file = workshop.settings, workshop.settings.folder / IDENTITY
    own = {
        "teacher": model_identity(settings.teacher),
        "task": settings.data.task,
        "metric": workshop.judge.metric,
        "formats": settings.formats and list(settings.formats),
        "sampler": settings.sampler,
        "seed": settings.seed,
        **{
            f"{part}_data": data_identity(part, getattr(workshop.parts, part))
            for part in ("train", "validation", "test")
        },
    }
    own = json.loads(json.dumps(own, default=str))
    if not file.is_file():
        write_json(file, own)
    elif changed := [name for name, value in read_json(file).items() if own.get(name) != value]:
        raise ValueError(
            f"{settings.output} has a search with another {', '.join(changed)}: choose another folder, or remove "
            f"{settings.folder}. Only keep, the limits, the budget and the workers may change."
        )


def check_limits(settings: Settings, costs: Costs) -> None:
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
        formats = settings.tried_formats(costs.workshop.teacher.can_generate())
        vocabulary = list(costs.workshop.rows)[-1]
        megabytes = min(costs.megabytes(smallest, vocabulary, own) for own in formats)
        if megabytes > settings.max_mb:
            raise ValueError(
                f"max_mb={settings.max_mb:g} cannot be met: the smallest student that this search cuts has about "
                f"{megabytes:.1f} MB."
            )
