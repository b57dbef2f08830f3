"""The answer of a search: measures the front, chooses, tests, and writes the folder."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.compression.choice import Candidate, candidates_of, choose, front, is_within, judge_on_test
from hf_distill.compression.costs import load_product
from hf_distill.compression.kept import Judge
from hf_distill.compression.latency import ROUNDS, WARM_UP, measure
from hf_distill.compression.page import PICTURE, answer_in_words, as_json, page, plot_front
from hf_distill.compression.settings import Clock, Settings
from hf_distill.compression.students import Maker, Student
from hf_distill.evaluation.benchmark_inputs import NUM_TEXTS, spread_over
from hf_distill.files import write_json, write_whole
from hf_distill.hub.cards import put_results
from hf_distill.tasks.evaluation import load_reader

MODEL, PAGE, RECORD = "model", "compression.md", "compression.json"

TEACHER = "teacher"

FEWEST_INPUTS = 4

SEEDS = 2
"""Other seeds that the chosen student is trained with, as far as the budget allows."""


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`.

    Attributes:
        folder: folder of the chosen model: the student, its card and its export.
        format: the format that was chosen, such as `"onnx-int8"`.
        is_met: whether the model does what was asked for.
        share: share of the teacher's metric on the test rows.
        low: lower bound of its 95% interval.
        high: upper bound.
        milliseconds: measured time of one input.
        teacher_milliseconds: the same of the teacher, in PyTorch in fp32.
        answer: the answer in words.
        content: what `compression.json` holds: all students, the front, and how they were measured.
    """

    folder: Path
    format: str
    is_met: bool
    share: float
    low: float
    high: float
    milliseconds: float
    teacher_milliseconds: float
    answer: str
    content: dict[str, Any]


def answer(maker: Maker, students: Sequence[Student], clock: Clock, tick: Callable[[], None]) -> Compressed:
    """Measures the front, chooses, tests, and writes the folder of the answer."""
    workshop, settings = maker.workshop, maker.workshop.settings
    test_units = workshop.test_units
    predicted = candidates_of(students)
    contenders = _contenders(predicted, settings, test_units)
    predictors = {
        own.name: load_product(maker.folder(own.student.number), own.product.format, workshop, settings.threads)
        for own in contenders
    }
    teacher = load_reader(settings.teacher, workshop.reading, settings.threads)
    measured = measure({**predictors, TEACHER: teacher}, _inputs(maker, contenders))
    teacher_ms = measured.pop(TEACHER)
    candidates = candidates_of(students, measured)
    chosen = choose([own for own in candidates if own.measured is not None], settings, test_units)
    tick()

    judge = dataclasses.replace(
        workshop.judge, rows=workshop.parts.test, teacher=workshop.predictions(teacher, workshop.parts.test)
    )
    predictions = workshop.predictions(predictors[chosen.name], judge.rows)
    verdict = judge_on_test(chosen, judge.kept(predictions), settings)
    tested, shown = _tested(judge, predictions)
    tick()

    content = (settings, candidates, chosen, verdict, judge.how_shown(), tested, shown)
    rows = {
        "train": len(workshop.parts.train),
        "variants": workshop.parts.num_variants,
        "validation": len(workshop.judge.rows),
        "test": len(judge.rows),
    }
    words = answer_in_words(chosen, verdict, settings, judge.how_shown().title, teacher_ms)
    seeds: list[float] = []

    def write() -> dict[str, Any]:
        whole = as_json(
            candidates,
            chosen,
            verdict,
            teacher_milliseconds=teacher_ms,
            quality=tested,
            shares_of_other_seeds=seeds,
            rows=rows,
            settings=settings.asked(),
            seconds=clock.used(),
        )
        write_json(settings.output / RECORD, whole)
        write_whole(settings.output / PAGE, page(*content, seeds, teacher_ms, rows, clock.used()))
        return whole

    _write_model(maker, chosen, settings, words)
    plot_front(candidates, chosen, settings, settings.output / PICTURE, judge.how_shown().title)
    whole = write()
    for number in range(0 if chosen.student.recipe.is_teacher else SEEDS):
        if clock.left() < 1.2 * (chosen.student.seconds + maker.costs.answer):
            break
        seeds.append(_share_of_seed(maker, chosen, students, judge, number + 1))
        whole = write()
        tick()
    kept = verdict.kept
    return Compressed(
        settings.output / MODEL,
        chosen.product.format,
        verdict.is_met,
        kept.share,
        kept.low,
        kept.high,
        chosen.milliseconds,
        teacher_ms,
        words,
        whole,
    )


def _contenders(predicted: Sequence[Candidate], settings: Settings, test_units: int) -> list[Candidate]:
    """What is measured: the fastest product of each student, the front, and what would be chosen by predictions."""
    fastest = {own.student.number: own for own in reversed(predicted)}
    within = [own for own in predicted if is_within(own, settings)] or predicted
    all_of_them = [*fastest.values(), *front(within), choose(predicted, settings, test_units)]
    return list({own.name: own for own in all_of_them}.values())


def _inputs(maker: Maker, contenders: Sequence[Candidate]) -> list:
    """Inputs that all models answer in a twentieth of the budget, as far as that is possible."""
    milliseconds = sum(own.milliseconds for own in contenders) + maker.costs.teacher_ms
    number = int(0.05 * maker.workshop.settings.budget * 1e3 / (milliseconds * (ROUNDS + WARM_UP)))
    return spread_over(maker.workshop.inputs(), min(max(number, FEWEST_INPUTS), NUM_TEXTS))


def _share_of_seed(maker: Maker, chosen: Candidate, students: Sequence[Student], judge: Judge, number: int) -> float:
    """The share that the chosen student keeps if it is trained with another seed."""
    student = chosen.student
    source = next((own for own in students if own.number == student.source), None)
    folder = maker.folder("seed")
    seed = maker.workshop.settings.seed + student.number + 1000 * number
    maker.make(student.number, student.recipe, source, seed, folder=folder, formats=[chosen.product.format])
    share = judge.share(maker.predictions(folder, chosen.product.format, judge.rows))
    shutil.rmtree(folder)
    return share


def _tested(judge: Judge, predictions: Sequence[Any]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """All metrics on the test rows, of teacher and student, and how they are shown."""
    task, rows, reading = judge.task, judge.rows, judge.reading
    has_labels = judge.metric in task.quality
    tested = {
        "teacher": task.metrics(judge.teacher, rows if has_labels else None, reading, judge.teacher),
        "student": task.metrics(predictions, rows if has_labels else None, reading, judge.teacher),
    }
    both = {**task.quality, **task.fidelity}
    return tested, {name: how for name, how in both.items() if name in tested["student"] and name in tested["teacher"]}


def _write_model(maker: Maker, chosen: Candidate, settings: Settings, answer: str) -> None:
    """Copies the chosen student, its card and its export into the folder of the answer, completely or not at all."""
    source, folder = maker.folder(chosen.student.number), settings.output / MODEL
    unfinished = settings.output / f".{MODEL}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    others = {product.format for product in chosen.student.products} - {chosen.product.format}
    shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns(*others, "training_args.bin", "checkpoint-*"))
    if (unfinished / "README.md").is_file():
        put_results(unfinished / "README.md", answer, None)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
