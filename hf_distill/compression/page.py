"""The page that a search writes: the answer, the Pareto front, and every student."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill.compression.choice import Candidate, Verdict, front
from hf_distill.compression.directions import NUM_LAYERS
from hf_distill.compression.settings import Settings
from hf_distill.compression.students import Student
from hf_distill.evaluation.plots import new_figure, save_figure
from hf_distill.evaluation.report import Metric
from hf_distill.evaluation.tables import markdown_table, models_table, paragraph
from hf_distill.machine import machine, versions
from hf_distill.optional import optional
from hf_distill.progress.lines import as_time

PICTURE = "pareto.png"

SHORT = {"intermediate_size": "feed-forward", "num_attention_heads": "heads", "hidden_size": "hidden"}


def sizes_in_words(student: Student) -> str:
    """As in `3 layers, feed-forward 768, heads 8`; of the teacher in another format, `the teacher itself`."""
    words = [_size_in_words(*own) for own in student.recipe.sizes.items()]
    if student.recipe.is_teacher:
        words = ["the teacher itself"]
    if student.recipe.vocabulary != "all":
        words.append(f"{student.recipe.vocabulary} tokens")
    return ", ".join(words)


def _size_in_words(name: str, size: int) -> str:
    argument, _, stack = name.partition(".")
    if argument == NUM_LAYERS:
        return f"{size} {stack}{' ' if stack else ''}layer{'' if size == 1 else 's'}"
    return f"{SHORT[argument]} {size}"


def answer_in_words(candidate: Candidate, verdict: Verdict, settings: Settings, metric: str, teacher_ms: float) -> str:
    """The answer in a few sentences."""
    kept, ms = verdict.kept, candidate.milliseconds
    asked = [f"at least {settings.keep:.1%} of the teacher's {metric}"]
    asked += [] if settings.max_ms is None else [f"at most {settings.max_ms:g} ms"]
    asked += [] if settings.max_mb is None else [f"at most {settings.max_mb:g} MB"]
    found = (
        f"{sizes_in_words(candidate.student)}, {candidate.product.format}. On {kept.units:,} test rows it keeps "
        f"{kept.share:.1%} of the teacher's {metric}, 95% interval {100 * kept.low:.1f} to {100 * kept.high:.1f}. It "
        f"takes {ms:.2f} ms instead of {teacher_ms:.2f}, {teacher_ms / ms:.1f} times as fast, and has "
        f"{candidate.product.megabytes:.1f} MB."
    )
    first = (
        "This model does what was asked for" if verdict.is_met else "No student does what was asked for; the nearest"
    )
    return "\n\n".join(
        [paragraph(f"Asked for: {', '.join(asked)}. {first}: {found}"), *map(paragraph, verdict.reasons)]
    )


def page(
    settings: Settings,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    verdict: Verdict,
    metric: Metric,
    tested: Mapping[str, Mapping[str, float]],
    shown: Mapping[str, Metric],
    seeds: Sequence[float],
    teacher_ms: float,
    rows: Mapping[str, int],
    used: float,
) -> str:
    """Formats the page as Markdown. It shows the picture that lies in the same folder."""
    parts = [
        f"# {Path(settings.teacher).name}, compressed",
        answer_in_words(chosen, verdict, settings, metric.title, teacher_ms),
        _seeds(seeds, chosen.student),
        "## Quality on the test rows",
        models_table(
            list(tested),
            {how.title: [format(own[name], how.format) for own in tested.values()] for name, how in shown.items()},
        ),
        "## The Pareto front",
        paragraph(
            f"The students that are better than every faster one. Shares are of the teacher's {metric.title} on "
            f"{rows['validation']:,} validation rows, with 95% intervals. Operations are multiplications per token."
        ),
        _front_table(front(candidates), teacher_ms),
        f"![The share of the teacher's quality against milliseconds]({PICTURE})",
        "## All students",
        _students_table(students_of(candidates)),
        "## How this was measured",
        _method(settings, rows, used),
        *([_predictions(candidates)] if len(measured_of(candidates)) > 2 else []),
        "## Next",
        _next(settings),
    ]
    return "\n\n".join(parts) + "\n"


def plot_front(
    candidates: Sequence[Candidate], chosen: Candidate, settings: Settings, file: Path, quality: str
) -> None:
    """Plots the share kept over milliseconds, with the front as a line."""
    figure = new_figure(file, width=7, height=4.5)
    axes = figure.subplots()
    for own in candidates:
        share, kept = 100 * own.product.kept.share, own.product.kept
        error = [[100 * (kept.share - kept.low)], [100 * (kept.high - kept.share)]]
        axes.errorbar(own.milliseconds, share, yerr=error, fmt="o", color="C0", alpha=0.5, markerfacecolor="none")
    best = front(candidates)
    axes.plot([own.milliseconds for own in best], [100 * own.product.kept.share for own in best], color="C0")
    axes.plot(chosen.milliseconds, 100 * chosen.product.kept.share, "*", color="C3", markersize=14, label="chosen")
    axes.axhline(100 * settings.keep, color="grey", linestyle="--", label=f"asked for: {settings.keep:.1%}")
    axes.set(xscale="log", xlabel="milliseconds for one input", ylabel=f"% of the teacher's {quality}")
    axes.set(title="Validation rows, with 95% intervals")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(lambda value, position: f"{value:g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, file)


def _seeds(seeds: Sequence[float], student: Student) -> str:
    if student.recipe.is_teacher:
        return "It was not trained, so no other seeds were tried."
    if not seeds:
        return "Its spread over seeds was not measured: the budget was used up."
    shares = ", ".join(f"{share:.1%}" for share in seeds)
    return paragraph(f"Trained again with other seeds, the same student keeps {shares} on the test rows.")


def _front_table(best: Sequence[Candidate], teacher_ms: float) -> str:
    header = ["student", "format", "share kept", "ms", "times as fast", "MB", "M operations", "M parameters"]
    rows = [
        [
            f"{own.student.number}: {sizes_in_words(own.student)}",
            own.product.format,
            own.product.kept.words(),
            f"{own.milliseconds:.2f}",
            f"{teacher_ms / own.milliseconds:.1f}",
            f"{own.product.megabytes:.1f}",
            f"{own.student.operations / 1e6:.2f}",
            f"{own.student.parameters / 1e6:.2f}",
        ]
        for own in best
    ]
    return markdown_table(header, rows)


def _students_table(students: Sequence[Student]) -> str:
    header = [
        "student",
        "cut from",
        "layers by",
        "texts",
        "losses",
        "learning rate",
        "steps",
        "seconds",
        "share kept, by format",
    ]
    rows = [
        [
            f"{own.number}: {sizes_in_words(own)}",
            "the teacher" if own.source is None else str(own.source),
            own.recipe.layers,
            own.recipe.texts,
            own.recipe.losses,
            f"{own.recipe.learning_rate:.1e}",
            f"{own.recipe.steps:,}",
            f"{own.seconds:.0f}",
            "; ".join(f"{product.format} {product.kept.words()}" for product in own.products),
        ]
        for own in students
    ]
    return markdown_table(header, rows)


def _method(settings: Settings, rows: Mapping[str, int], used: float) -> str:
    on, packages = machine(), ", ".join(f"{name} {version}" for name, version in versions().items())
    variants = f" ({rows['variants']:,} of them variants of labelled texts)" if rows["variants"] else ""
    return paragraph(
        f"{rows['train']:,} training rows{variants}, {rows['validation']:,} validation rows, which chose the student, "
        f"and {rows['test']:,} test rows, which were read once it was chosen. Intervals are from a bootstrap over the "
        f"rows, the same ones for student and teacher. Milliseconds are for one input with its preparation, the mean "
        f"over validation inputs, on {on['cpu']}, threads: {settings.threads}. "
        f"The search took {as_time(used)} of a budget of {as_time(settings.budget)}, with seed "
        f"{settings.seed}. {packages}."
    )


def _predictions(candidates: Sequence[Candidate]) -> str:
    own = measured_of(candidates)
    return paragraph(
        f"Predicted and measured milliseconds of {len(own)} products have a rank correlation of "
        f"{rank_correlation(own):.3f}. Products that were not measured have their prediction here."
    )


def measured_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose time was measured."""
    return [own for own in candidates if own.measured is not None]


def rank_correlation(candidates: Sequence[Candidate]) -> float:
    """Spearman's correlation of predicted and measured milliseconds."""
    spearmanr = optional("scipy.stats", "evaluation").spearmanr
    pairs = [(own.product.milliseconds, own.measured) for own in candidates]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _next(settings: Settings) -> str:
    model = settings.output / "model"
    return (
        f"    hf-distill serve {model}\n    hf-distill evaluate {model} --data DATA\n    hf-distill push {model} NAME"
    )


def students_of(candidates: Sequence[Candidate]) -> list[Student]:
    """The students of candidates, each once, by number."""
    by_number = {own.student.number: own.student for own in candidates}
    return [by_number[number] for number in sorted(by_number)]


def as_json(candidates: Sequence[Candidate], chosen: Candidate, verdict: Verdict, **others: Any) -> dict[str, Any]:
    """The content of the page, as numbers."""
    best = {own.name for own in front(candidates)}
    return {
        "chosen": {
            "student": chosen.student.number,
            "format": chosen.product.format,
            "milliseconds": chosen.milliseconds,
        },
        "is_met": verdict.is_met,
        "reasons": list(verdict.reasons),
        "test": {**vars(verdict.kept)},
        "candidates": [
            {
                "student": own.student.number,
                "format": own.product.format,
                "milliseconds": own.milliseconds,
                "predicted_milliseconds": own.product.milliseconds,
                "megabytes": own.product.megabytes,
                "validation": {**vars(own.product.kept)},
                "is_on_front": own.name in best,
            }
            for own in candidates
        ],
        "students": [own.record() for own in students_of(candidates)],
        "machine": machine(),
        "versions": versions(),
        **others,
    }
