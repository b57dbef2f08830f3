"""Model cards: writes them, recognises cards that a person has edited, and fills their section for results."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_distill.files import write_whole

RESULTS_BEGIN = "<!-- hf_distill: results begin -->"
RESULTS_END = "<!-- hf_distill: results end -->"

STAMP = re.compile(r"\n<!-- Written by hf_distill ([0-9a-f]{16}). It will not overwrite an edited card. -->\n\Z")
"""Last line of a card that hf_distill may overwrite, with a fingerprint of everything above."""


def make_card(data: ModelCardData, text: str) -> ModelCard:
    """Makes a card from metadata and Markdown."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def write_card(card: ModelCard, readme: Path) -> None:
    """Writes a card that hf_distill may overwrite later unless a person edits it."""
    content = STAMP.sub("", str(card)).rstrip() + "\n"
    stamp = f"\n<!-- Written by hf_distill {_fingerprint(content)}. It will not overwrite an edited card. -->\n"
    write_whole(readme, content + stamp)


def may_replace(readme: Path) -> bool:
    """True if there is no card, or a card from `write_card` that has not been edited since."""
    if not readme.exists():
        return True
    content = readme.read_bytes().decode(errors="replace")
    stamp = STAMP.search(content)
    return stamp is not None and stamp.group(1) == _fingerprint(content[: stamp.start()])


def put_results(readme: str | Path, markdown: str, eval_results: Sequence[EvalResult] | None = None) -> None:
    """Replaces the results in an existing card. The rest of the card does not change.

    Args:
        readme: the card. Results belong between the two comments that the cards of `DistillationTrainer` contain.
        markdown: new results, such as a table.
        eval_results: results for the metadata's `model-index`. Default: the metadata does not change.

    Raises:
        ValueError: if the card does not exist or has no section for results.

    Example:
        >>> put_results("student/README.md", table, [EvalResult(...)])
    """
    readme = Path(readme)
    before, after = around_results(readme)
    is_own = may_replace(readme)
    content = f"{before}{RESULTS_BEGIN}\n\n{markdown.strip()}\n\n{RESULTS_END}{after}"
    if eval_results is not None:
        card = ModelCard(content)
        assert isinstance(card.data, ModelCardData)
        card.data.model_name = card.data.model_name or _title(card.text) or readme.absolute().parent.name
        card.data.eval_results = list(eval_results)
        content = str(card)
    if is_own:
        write_card(ModelCard(content), readme)
    else:
        write_whole(readme, content)


def around_results(readme: Path) -> tuple[str, str]:
    """Splits a card into the text before its results and the text after them.

    Raises:
        ValueError: if the card does not exist or has no section for results.
    """
    if not readme.is_file():
        raise ValueError(f"{readme} does not exist: trainer.save_model() writes a card next to the model.")
    before, begin, rest = readme.read_bytes().decode().partition(RESULTS_BEGIN)
    _, end, after = rest.partition(RESULTS_END)
    if not begin or not end:
        raise ValueError(
            f"{readme} has no section for results: add the lines {RESULTS_BEGIN} and {RESULTS_END} where the results "
            f"belong."
        )
    return before, after


def layers_as_words(value: dict | list | str) -> str:
    """Formats kept layers or the way they were chosen, as in the config from `make_student`: by stack or for one."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {layers_as_words(own)}" for name, own in value.items())
    return value if isinstance(value, str) else ", ".join(map(str, value))


def cut_as_words(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What was cut, as rows of a card's table, from `distilled_from` in the config of a student."""
    rows = {}
    if provenance.get("layers"):  # not for ALBERT, which has no stack of layers, or if only the vocabulary was trimmed
        rows["layers kept"] = layers_as_words(provenance["layers"])
        rows["layer selection"] = layers_as_words(provenance["method"])
    if sizes := provenance.get("sizes"):
        rows["sizes"] = "; ".join(f"{name}: {own['student']:,} of {own['teacher']:,}" for name, own in sizes.items())
        rows["unit selection"] = provenance["width"]
    if vocabulary := provenance.get("vocabulary"):
        rows["tokens kept"] = f"{vocabulary['kept']:,} of {vocabulary['of']:,}"
    return rows


def _title(text: str) -> str | None:
    heading = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    return heading and heading.group(1).strip()


def _fingerprint(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]
