"""Chooses a student by the validation rows, and shows on the test rows what it keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_distill.compression.kept import Kept
from hf_distill.compression.settings import Settings
from hf_distill.compression.students import Product, Student

MOST_ROWS = 10
"""How many times as many test rows may be asked for. With more, the share is too near to what is asked for."""


@dataclass(frozen=True)
class Candidate:
    """A student in one format.

    Attributes:
        student: the student.
        product: its format, with what was predicted and measured on the validation rows.
        measured: measured milliseconds of one input; None if only the prediction is known.
    """

    student: Student
    product: Product
    measured: float | None = None

    @property
    def milliseconds(self) -> float:
        return self.product.milliseconds if self.measured is None else self.measured

    @property
    def name(self) -> str:
        return f"{self.student.number}, {self.product.format}"


def candidates_of(students: Sequence[Student], measured: Mapping[str, float] | None = None) -> list[Candidate]:
    """All products, fastest first, each with its measured milliseconds if they are known by its name."""
    found = [Candidate(student, product) for student in students for product in student.products]
    found = [Candidate(own.student, own.product, (measured or {}).get(own.name)) for own in found]
    return sorted(found, key=lambda own: own.milliseconds)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front: candidates that are better than all faster ones, fastest first."""
    best, found = -1.0, []
    for own in sorted(candidates, key=lambda own: (own.milliseconds, -own.product.kept.share)):
        if own.product.kept.share > best:
            best = own.product.kept.share
            found.append(own)
    return found


def is_within(candidate: Candidate, settings: Settings) -> bool:
    """Whether a candidate is within the limits of time and size."""
    is_fast = settings.max_ms is None or candidate.milliseconds <= settings.max_ms
    return is_fast and (settings.max_mb is None or candidate.product.megabytes <= settings.max_mb)


def choose(candidates: Sequence[Candidate], settings: Settings, test_units: int) -> Candidate:
    """The fastest candidate that keeps enough on the validation rows, so that test rows will probably show it too.

    If there is none, the one whose lower bound is nearest to what is asked for. Candidates over the limits come last.
    """

    def margin(own: Candidate) -> float:
        return own.product.kept.margin(settings.keep, test_units)

    within = [own for own in candidates if is_within(own, settings)]
    good = [own for own in within if margin(own) >= 0]
    if good:
        return min(good, key=lambda own: own.milliseconds)
    return max(within or candidates, key=margin)


@dataclass(frozen=True)
class Verdict:
    """Whether the chosen model does what was asked for.

    Attributes:
        kept: the share on the test rows.
        is_met: whether the lower bound of its interval is at least the share asked for, within the limits.
        reasons: what is missing, and what would help. Empty if it is met.
    """

    kept: Kept
    is_met: bool
    reasons: tuple[str, ...]


def judge_on_test(candidate: Candidate, kept: Kept, settings: Settings) -> Verdict:
    """Compares what was measured on the test rows with what was asked for."""
    reasons = []
    if settings.max_ms is not None and candidate.milliseconds > settings.max_ms:
        reasons.append(
            f"It takes {candidate.milliseconds:.2f} ms, more than max_ms={settings.max_ms:g}: allow more, "
            f"or lower keep so that smaller students count."
        )
    if settings.max_mb is not None and candidate.product.megabytes > settings.max_mb:
        reasons.append(
            f"It has {candidate.product.megabytes:.1f} MB, more than max_mb={settings.max_mb:g}: allow more, or lower "
            f"keep."
        )
    if kept.low < settings.keep:
        reasons.append(_too_little(kept, settings))
    return Verdict(kept, not reasons, tuple(reasons))


def _too_little(kept: Kept, settings: Settings) -> str:
    if kept.share >= settings.keep:
        found = (
            f"It keeps {kept.words()} on {kept.units:,} test rows: the share is high enough, but its lower bound is "
            f"below {settings.keep:.1%}."
        )
        needed = kept.units * ((kept.share - kept.low) / max(kept.share - settings.keep, 1e-6)) ** 2
        if needed <= MOST_ROWS * kept.units:
            found += f" About {needed:,.0f} test rows would show it if the share stays."
        return f"{found} A longer budget, more unlabelled texts or a lower keep would help."
    return (
        f"It keeps {kept.words()}, less than {settings.keep:.1%}. More unlabelled texts, a longer budget or a lower "
        f"keep would help."
    )
