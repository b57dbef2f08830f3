"""`compress`: finds the fastest student of a teacher that keeps a share of its quality."""

import errno
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout

from hf_distill.compression.answer import Compressed, answer
from hf_distill.compression.choice import Candidate, candidates_of, choose
from hf_distill.compression.costs import Costs
from hf_distill.compression.page import sizes_in_words
from hf_distill.compression.search import UNITS, Search, open_study, students_of
from hf_distill.compression.settings import Clock, Settings, seconds_of
from hf_distill.compression.students import Maker, Student
from hf_distill.compression.workshop import Workshop
from hf_distill.deployment.backends import available_cores
from hf_distill.files import read_json, write_json
from hf_distill.progress import Progress
from hf_distill.progress.lines import as_time
from hf_distill.tasks.arguments import TaskArguments

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

STATE, CLOCK = "state.json", "clock.json"

SHORTEST = 0.2
"""Fewest seconds of the shortest training."""

SHARE_OF_ANSWER = 0.2
"""Share of the budget that is kept for the answer: measuring the front, the test rows, other seeds."""

GRACE = 30
"""Seconds that other workers get to finish their last student."""


def compress(
    teacher: str | Path,
    data: TaskArguments,
    output: str | Path,
    *,
    keep: float,
    metric: str | None = None,
    max_ms: float | None = None,
    max_mb: float | None = None,
    budget: str | float = "1h",
    formats: Sequence[str] | None = None,
    workers: int = 1,
    threads: int | None = None,
    storage: str | None = None,
    sampler: str = "tpe",
    seed: int = 0,
) -> Compressed:
    """Finds the fastest student that keeps a share of the teacher's quality, and shows how sure this is.

    A search with Optuna cuts students in every direction that the teacher has, trains them on the teacher's stored
    outputs, exports them and measures them on validation rows. A student is cut from the best larger one that was
    found, and stopped early if a faster one was better. The chosen student is then measured once on the test rows.

    An interrupted search goes on when it is called again, and loses at most the student that was in training. With a
    longer budget, or other limits, a finished search goes on too.

    Args:
        teacher: folder or Hub name of a trained model.
        data: task and data, such as `TextClassificationArguments(train_file=..., test_file=..., unlabelled_file=...)`.
            Without validation data, two fifths of the test rows choose the student, and the others show what it keeps.
        output: folder for the chosen model (`model`), the page (`compression.md`, `pareto.png`), its content
            (`compression.json`) and the search (`search`).
        keep: share of the teacher's metric that the lower bound of the 95% interval must reach, between 0 and 1.
        metric: a metric of the task's quality, or of its fidelity to the teacher. Default: the first of the quality.
        max_ms: most milliseconds for one input.
        max_mb: most megabytes of the model's files. Smaller vocabularies are then tried too.
        budget: time of the whole search, such as `"30m"`, or seconds.
        formats: formats to measure. Default: PyTorch, ONNX and ONNX int8; for models that generate, PyTorch and int8.
        workers: students that are trained at the same time on this machine.
        threads: threads of the measured models. Default: all cores.
        storage: URL of a database for Optuna. Default: a file in `output`. With a database that other machines reach,
            and `output` on a shared disk, `join` lets them take part.
        sampler: `"tpe"`, or `"random"` for comparison.
        seed: seed of the search.

    Returns:
        The chosen model and what it was measured at.

    Raises:
        ValueError: if the request is invalid or cannot be met by any student; if the teacher is not better than
            guessing; if there are too few test rows, or some that are also training rows; or if the budget is too
            short for one student.
        OSError: if the disk is full. What was found before stays, and the next call goes on.
        ImportError: if the packages of `hf_distill[compress]` are missing.

    Example:
        >>> data = TextClassificationArguments(train_file="train.csv", test_file="test.csv", unlabelled_file="more.txt")
        >>> small = compress("outputs/teacher", data, "outputs/small", keep=0.97, budget="30m")
        >>> small.low, small.teacher_milliseconds / small.milliseconds
        (0.972, 10.8)
    """
    settings = Settings(
        teacher=str(teacher),
        data=data,
        output=Path(output),
        keep=keep,
        metric=metric,
        max_ms=max_ms,
        max_mb=max_mb,
        budget=seconds_of(budget),
        formats=None if formats is None else tuple(formats),
        workers=workers,
        threads=available_cores() if threads is None else threads,
        storage=storage,
        sampler=sampler,
        seed=seed,
    )
    settings.check()
    settings.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.folder / ".lock", timeout=0), _names_full_disk(settings):
            return _compress(settings)
    except Timeout:
        raise ValueError(
            f"A search is running in {output}: wait until it ends, or take part with hf-distill compress "
            f"--join {output}."
        ) from None


def join(output: str | Path) -> None:
    """Takes part in the search that runs in a folder, from this or from another machine, until its time is over.

    Raises:
        ValueError: if no search runs there.
    """
    settings = Settings.read(Path(output))
    state = settings.folder / STATE
    if not state.is_file() or read_json(state)["until"] < time.time():
        raise ValueError(
            f"No search is running in {output}: start it with hf-distill compress TEACHER --output {output} ..."
        )
    content = read_json(state)
    with _threads(settings.workers):
        workshop = Workshop.open(settings)
        maker = Maker(workshop, Costs.open(workshop))
        study = open_study(settings)
        search = Search(
            maker, study, content["until"], content["unit"], _sayer(maker, settings, study, content["until"])
        )
        search.run()


def _compress(settings: Settings) -> Compressed:
    clock = Clock(settings.budget, settings.folder / CLOCK)
    workshop = Workshop.open(settings)
    settings.write()
    clock.record()
    costs = Costs.open(workshop)
    clock.record()
    maker, study = Maker(workshop, costs), open_study(settings)
    costs.check_limits()
    before = clock.used()
    with Progress("Searching", max(1, int(settings.budget - before)), "seconds") as progress:

        def tick() -> None:
            if (seconds := int(clock.used() - before) - progress.done) > 0:
                progress.update(min(seconds, progress.total - progress.done))
                clock.record()

        until = time.time() + clock.left() - SHARE_OF_ANSWER * settings.budget
        search = Search(
            maker,
            study,
            until,
            max(SHORTEST, costs.answer, (until - time.time()) / UNITS),
            _sayer(maker, settings, study, until, progress.write),
            tick,
        )
        if not students_of(study) and until - time.time() < search.shortest_seconds():
            raise ValueError(
                f"A budget of {as_time(settings.budget)} is too short: after {as_time(clock.used())} of preparation, a "
                f"student takes at least {as_time(search.shortest_seconds())}, and the answer a fifth of the budget. "
                f"Give at least {as_time((clock.used() + 2 * search.shortest_seconds()) / (1 - SHARE_OF_ANSWER))}."
            )
        search.start()
        write_json(settings.folder / STATE, {"until": until, "unit": search.unit})
        _search(search, settings)
        (settings.folder / STATE).unlink(missing_ok=True)
        if not students_of(study):
            raise ValueError(
                "No student was trained in the budget: give a longer one. The same command goes on with the next "
                "student."
            )
        result = answer(maker, students_of(study), clock, tick)
        tick()
    return result


def _search(search: Search, settings: Settings) -> None:
    """Runs the search, and the other workers. After Ctrl-C it ends with what was found."""
    command = [sys.executable, "-m", "hf_distill.cli", "compress", "--join", str(settings.output)]
    others = [subprocess.Popen(command) for _ in range(settings.workers - 1)]
    try:
        with _threads(settings.workers):
            search.run()
    except KeyboardInterrupt:
        if not students_of(search.study):
            raise
        logger.warning("Interrupted: the answer is the best that was found so far.")
        for other in others:
            other.terminate()
    finally:
        for other in others:
            try:
                other.wait(max(1.0, search.until - time.time()) + GRACE)
            except subprocess.TimeoutExpired:
                other.kill()


def _sayer(
    maker: Maker,
    settings: Settings,
    study: "optuna.Study",
    until: float,
    write: Callable[[str], None] | None = None,
) -> Callable[[Student], None]:
    """A function that shows a student in one line, the best so far, and the time left."""
    test_units = maker.workshop.test_units
    say = write or (lambda line: print(line, file=sys.stderr, flush=True))

    def words(own: Candidate) -> str:
        kept = own.product.kept.words()
        times = maker.costs.teacher_ms / own.milliseconds
        return f"{own.product.format} keeps {kept}, {own.milliseconds:.2f} ms ({times:.1f} times as fast)"

    def show(student: Student) -> None:
        own = choose(candidates_of([student]), settings, test_units)
        others = [other for other in students_of(study) if other.number != student.number]
        best = choose(candidates_of([*others, student]), settings, test_units)
        say(
            f"Student {student.number}, {sizes_in_words(student)}: {words(own)}. Best so far: student "
            f"{best.student.number}, {best.milliseconds:.2f} ms. {as_time(max(0.0, until - time.time()))} left."
        )

    return show


@contextmanager
def _names_full_disk(settings: Settings) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "disk is full" in str(error):
            raise OSError(
                f"The disk is full. What was found so far is kept in {settings.folder}: free some space, and run the "
                f"same command again."
            ) from error
        raise


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Gives PyTorch this worker's share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, available_cores() // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
