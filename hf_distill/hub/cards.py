"""Model cards: written whole, told from those that a person wrote, and with a section for results."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_distill.files import write_whole

RESULTS_BEGIN = "<!-- hf_distill: results begin -->"
RESULTS_END = "<!-- hf_distill: results end -->"

STAMP = re.compile(r"\n<!-- Written by hf_distill ([0-9a-f]{16}). Once edited, it is left as it is. -->\n\Z")
"""What a card ends with that hf_distill may replace: the fingerprint of all that is above."""


def make_card(data: ModelCardData, text: str) -> ModelCard:
    """A card of metadata and Markdown."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def write_card(card: ModelCard, readme: Path) -> None:
    """Writes a card that hf_distill may replace later, as long as nobody edits it."""
    content = STAMP.sub("", str(card)).rstrip() + "\n"
    stamp = f"\n<!-- Written by hf_distill {_fingerprint(content)}. Once edited, it is left as it is. -->\n"
    write_whole(readme, content + stamp)


def may_replace(readme: Path) -> bool:
    """Whether there is no card, or one that `write_card` wrote and nobody has edited since."""
    if not readme.exists():
        return True
    content = readme.read_bytes().decode(errors="replace")
    stamp = STAMP.search(content)
    return stamp is not None and stamp.group(1) == _fingerprint(content[: stamp.start()])


def put_results(readme: str | Path, markdown: str, eval_results: Sequence[EvalResult] | None = None) -> None:
    """Puts results into a card that is there, in the place of those that it has.

    The rest of the card stays as it is, whoever wrote it. The file is written beside and then renamed.

    Args:
        readme: the card, with the two comments between which the results are, as in the cards of `DistillationTrainer`.
        markdown: what to put there, such as a table.
        eval_results: for the metadata's `model-index`; by default that stays as it is.

    Raises:
        ValueError: if there is no card, or if it has no place for results.

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
    """What is in a card before its results and after them.

    Raises:
        ValueError: if there is no card, or if it has no place for results.
    """
    if not readme.is_file():
        raise ValueError(f"{readme} does not exist: trainer.save_model() writes it beside the model.")
    before, begin, rest = readme.read_bytes().decode().partition(RESULTS_BEGIN)
    _, end, after = rest.partition(RESULTS_END)
    if not begin or not end:
        raise ValueError(
            f"{readme} has no place for results: put the lines {RESULTS_BEGIN} and {RESULTS_END} where they belong."
        )
    return before, after


def layers_as_words(value: dict | list | str) -> str:
    """The layers kept or the way they were chosen, as `make_student` writes them to the config: by stack or not."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {layers_as_words(own)}" for name, own in value.items())
    return value if isinstance(value, str) else ", ".join(map(str, value))


def _title(text: str) -> str | None:
    heading = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    return heading and heading.group(1).strip()


def _fingerprint(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]
