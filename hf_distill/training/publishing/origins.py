"""The models that a student's weights or targets come from, for its card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from transformers import Trainer
from transformers.utils import logging

from hf_distill.hub.push import is_on_hub, public_name, revision_on_hub

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Origin:
    """The model that weights or targets come from.

    Attributes:
        name: name on the Hub or of a folder; empty if unknown.
        revision: the commit, if known.
        on_hub: whether the model is known to be on the Hub.
        folder: the local folder, if it was loaded from one.
        settings: how the teacher was asked, if its targets were imported or sampled.
    """

    name: str
    revision: str | None = None
    on_hub: bool = False
    folder: Path | None = None
    settings: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"`{self.name}`" + (f" at revision `{self.revision}`" if self.revision else "")


def teachers_of(trainer: Trainer) -> list[Origin]:
    """The trainer's teachers, live or stored; empty without a teacher."""
    if trainer.teacher is None:
        return []
    return [_origin_of(teacher) for teacher in getattr(trainer.teacher, "teachers", [trainer.teacher])]


def _origin_of(teacher: Any) -> Origin:
    if teacher.model is None:
        source = teacher.source
        on_hub = "/" in source.teacher and is_on_hub(source.teacher)  # a folder's name has no slash
        sampled = None if source.num_samples is None else {"sampled tokens per position": source.num_samples}
        return Origin(source.teacher, source.revision, on_hub, settings=source.settings or sampled)
    raw = teacher.name
    folder = Path(raw) if raw and Path(raw).is_dir() else None
    return Origin(public_name(raw), revision_on_hub(teacher.model), bool(raw) and is_on_hub(raw), folder)


def license_of(origins: Sequence[Origin]) -> dict[str, str]:
    """The licence entries that the cards of all models share; empty if a card is missing or cannot be loaded."""
    licenses = [_license_of(origin) for origin in origins]
    return licenses[0] if licenses and all(license == licenses[0] for license in licenses) else {}


def _license_of(origin: Origin) -> dict[str, str]:
    if not (origin.folder or origin.on_hub):
        return {}
    try:
        if origin.folder:
            card = ModelCard.load(origin.folder / "README.md") if (origin.folder / "README.md").is_file() else None
        else:
            card = ModelCard.load(hf_hub_download(origin.name, "README.md", revision=origin.revision))
    except Exception as error:  # no network, no card or an unreadable one: never a reason not to save
        logger.info(f"The licence of {origin.name} is unknown, so the student's card has no licence: {error}")
        return {}
    if card is None or not isinstance(card.data.license, str):
        return {}
    license = {"license": card.data.license, "license_name": card.data.license_name}
    if str(card.data.license_link).startswith("https://"):  # a relative link points into the teacher's folder
        license["license_link"] = card.data.license_link
    return {name: value for name, value in license.items() if value}


def mean_of_teachers(trainer: Trainer) -> dict[str, str]:
    """What is averaged of several teachers, and their weights."""
    state = trainer.teacher.state()
    weights = state["teacher_weights"]
    column = f"per row, from the column {weights}"
    listed = column if isinstance(weights, str) else ", ".join(f"{weight:.3g}" for weight in weights)
    return {"averaged over the teachers": state["teacher_mean"], "weights of the teachers": listed}


def in_words(teachers: Sequence[Origin]) -> str:
    """The teachers in words: `a`, `b` and `c`."""
    *others, last = map(str, teachers)
    return f"{', '.join(others)} and {last}" if others else last
