"""Checks of a search before any student is trained."""

import json

from hf_distill.compression.data import Parts
from hf_distill.compression.settings import DEFAULT_FORMATS, Settings
from hf_distill.deployment.formats import FORMATS
from hf_distill.files import read_json, write_json
from hf_distill.optional import optional
from hf_distill.training.checkpoints.runs import data_identity, model_identity

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
