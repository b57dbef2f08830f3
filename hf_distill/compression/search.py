"""Searches for students with Optuna: what is tried next, what is stopped early, and for how long."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from hf_distill.compression.directions import NUM_LAYERS, Sizes
from hf_distill.compression.settings import Settings
from hf_distill.compression.students import Maker, Product, Recipe, Student
from hf_distill.compression.workshop import ALL, BATCH_SIZE, USED
from hf_distill.optional import optional

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

STUDY = "compress"

STUDENT, AT_RUNG = "student", "at_rung"
"""User attributes of a trial: the trained student, and its share in the middle of the training."""

LAYERS = ("spread", "alternate", "first")

LENGTHS = (1, 2, 4)
"""Lengths of a training, in units."""

UNITS = 25
"""Units of training that fit into the time of a search, for each worker."""

FEWEST_STEPS = 10

LEARNING_RATES = (5e-5, 1e-3)

START_LEARNING_RATE = 2e-4

MOST_EPOCHS = 3
"""How often a student reads the rows with labels, or these and their variants; more rows teach more than that."""

NEAR = 0.06
"""How far below the share asked for a student may be and still be worth trading for speed."""

WORSE = 0.02
"""Share by which a faster student must be better in the middle of the training, so that a slower one is stopped."""

ABOUT_AS_GOOD = 0.01
"""Share by which a smaller student may be worse than a larger one, and still be the one to cut from."""

START = (((0.67, 1.0, 1.0), LENGTHS[-1]), ((0.67, 0.5, 0.7), LENGTHS[-1]), ((0.5, 0.5, 0.7), LENGTHS[1]))
"""The first students: shares of layers, feed-forward width, and heads and hidden width, and the length of the training.
Each is a part of the one before."""

BESIDE = ((0.83, 1.0, 1.0), LENGTHS[-1])
"""What another worker trains at first, because the students after the first one are cut from that."""

REFINED = 2
"""After this many students, the search trains one of them further, if there is no step down."""

STEP = 0.8
"""Most time of a student that is a step down from another, relative to that one."""

HEARTBEAT = 15
"""Seconds after which a running training says that it lives."""


def open_study(settings: Settings) -> "optuna.Study":
    """The study of a search, new or resumed."""
    optuna = optional("optuna", "compress")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        is_file = settings.database.startswith("sqlite")
        storage = optuna.storages.RDBStorage(
            settings.database,
            engine_kwargs={"connect_args": {"timeout": 60}} if is_file else None,
            heartbeat_interval=HEARTBEAT,
        )
        if settings.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=settings.seed)
        else:
            sampler = optuna.samplers.TPESampler(n_startup_trials=len(START), multivariate=True, seed=settings.seed)
        return optuna.create_study(
            storage=storage,
            sampler=sampler,
            study_name=STUDY,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )


def students_of(study: "optuna.Study") -> list[Student]:
    """The students that a search has trained."""
    trials = study.get_trials(deepcopy=False)
    return [Student.of(trial.user_attrs[STUDENT]) for trial in trials if STUDENT in trial.user_attrs and trial.values]


class Search:
    """One worker of a search.

    Attributes:
        maker: makes the students.
        study: the study, which all workers share.
        until: when it ends, in seconds as of `time.time`.
        unit: seconds of the shortest training.
        said: is called with each student that this worker finishes.
        tick: is called after each training step.
    """

    def __init__(
        self,
        maker: Maker,
        study: "optuna.Study",
        until: float,
        unit: float,
        said: Callable[[Student], None],
        tick: Callable[[], None] = lambda: None,
    ):
        self.maker, self.study, self.until, self.unit, self.said, self.tick = maker, study, until, unit, said, tick
        self.settings, self.costs = maker.workshop.settings, maker.costs
        self.test_units = maker.workshop.test_units

    def run(self) -> None:
        """Trains students until the time is over, or until none could be faster than one that keeps enough."""
        smallest = self.costs.cost(self.maker.workshop.directions.shares(0.0, 0.0, 0.0))
        _, least_milliseconds = self.costs.latency.fastest(smallest)[0]
        while self._has_time() and not self._is_superfluous(least_milliseconds):
            self._propose()
            self.study.optimize(self._try, n_trials=1)

    def start(self) -> None:
        """Queues the first students, in a new study. Random search has none."""
        if self.study.get_trials(deepcopy=False) or self.settings.sampler == "random":
            return
        queued = []
        for shares, length in [START[0], *[BESIDE] * (self.settings.workers > 1), *START[1:]]:
            sizes = self.maker.workshop.directions.shares(*shares)
            if sizes not in queued and self.costs.cost(sizes).products:
                queued.append(sizes)
                self._queue(sizes, length)

    def _queue(self, sizes: Sizes, length: int) -> None:
        """Queues a student of these sizes, with what is most likely to be right for all else."""
        chosen = {"losses": self.maker.workshop.searched_losses()[0], "learning_rate": START_LEARNING_RATE}
        if self._vocabularies()[1:]:
            chosen["vocabulary"] = USED
        if self._chooses_layers():
            chosen["layers"] = LAYERS[0]
        if self.maker.workshop.texts()[1:]:
            chosen["texts"] = self._first_texts(sizes, length)
        self.study.enqueue_trial({**sizes, **chosen, "length": length})

    def _first_texts(self, sizes: Sizes, length: int) -> str:
        """The rows with labels, which show what is right, unless they would be read too often; then more rows."""
        read = BATCH_SIZE * length * self.unit / self.costs.step_seconds(sizes)
        workshop = self.maker.workshop
        few = (own for own in workshop.texts() if read <= MOST_EPOCHS * len(workshop.training_rows(ALL, own)))
        return next(few, ALL)

    def _propose(self) -> None:
        """Queues steps down from the fastest student that keeps enough, or a step up if none does.

        When these were tried, every second time it queues more training for another student.
        """
        trials, students = self.study.get_trials(deepcopy=False), students_of(self.study)
        is_waiting = any(trial.state.name == "WAITING" for trial in trials)
        if not students or is_waiting or self.settings.sampler == "random":
            return
        best = {own.number: self.best_product(own) for own in students}
        margins = {number: self._margin(own) for number, own in best.items()}
        good = {best[own.number].milliseconds: own.recipe.sizes for own in students if margins[own.number] >= 0}
        milliseconds = min(good, default=math.inf)
        if good:
            queued = self._step_down(good[milliseconds], milliseconds, trials)
        else:
            nearest = max(students, key=lambda own: margins[own.number])
            queued = self._step_up(nearest.recipe.sizes, trials)
        if not queued and len(students) % REFINED == 0:
            faster = [
                own for own in students if not own.recipe.is_teacher and best[own.number].milliseconds < milliseconds
            ]
            self._refine({own.number: best[own.number] for own in faster}, trials)

    def _step_down(self, sizes: Sizes, milliseconds: float, trials: "Sequence[optuna.trial.FrozenTrial]") -> bool:
        """Queues students that are a step faster than this one, each smaller in one direction, unless they were tried.

        As NetAdapt (Yang et al., 2018, https://arxiv.org/abs/1804.03230).
        """
        directions = self.maker.workshop.directions.by_name
        tried, steps = self._tried(trials), []
        for name, direction in directions.items():
            smaller = [{**sizes, name: size} for size in direction.sizes() if size < sizes[name]]
            fast = [own for own in smaller if self._milliseconds(own) <= STEP * milliseconds]
            steps += [own for own in fast[-1:] if own not in tried and self.costs.cost(own).products]
        for own in steps:
            self._queue(own, LENGTHS[1])
        return bool(steps)

    def _step_up(self, sizes: Sizes, trials: "Sequence[optuna.trial.FrozenTrial]") -> bool:
        """Queues the student halfway between this one and the teacher; if it was tried, halfway from there."""
        tried, directions = self._tried(trials), self.maker.workshop.directions
        while sizes != directions.of_teacher():
            sizes = {name: own.halfway(sizes[name]) for name, own in directions.by_name.items()}
            if sizes not in tried and self.costs.cost(sizes).products:
                self._queue(sizes, LENGTHS[1])
                return True
        return False

    def _tried(self, trials: "Sequence[optuna.trial.FrozenTrial]") -> list[Sizes]:
        return [{name: trial.params.get(name) for name in self.maker.workshop.directions.by_name} for trial in trials]

    def _refine(self, faster: Mapping[int, Product], trials: "Sequence[optuna.trial.FrozenTrial]") -> None:
        """Queues more training of the student that needs least to be the best.

        If there are later trials with its sizes, they are in training, or were stopped early.
        """
        directions = self.maker.workshop.directions.by_name
        last = {tuple(trial.params.get(name) for name in directions): trial.number for trial in trials}
        margins = {number: self._margin(own) for number, own in faster.items() if number in last.values()}
        near = {number: margin for number, margin in margins.items() if margin > -NEAR}
        if near:
            number = max(near, key=lambda own: near[own])
            self.study.enqueue_trial({**trials[number].params, "length": LENGTHS[-1]}, skip_if_exists=False)

    def _has_time(self) -> bool:
        """Whether there is time for another student; after the first one, for a training of a whole unit."""
        worth = self.unit + self._overhead() if students_of(self.study) else 0.0
        return self._left() > max(worth, self.shortest_seconds())

    def shortest_seconds(self) -> float:
        """How long the smallest student takes, from the cut to its measured products."""
        smallest = self.maker.workshop.directions.shares(0.0, 0.0, 0.0)
        return FEWEST_STEPS * self.costs.step_seconds(smallest) + self._overhead()

    def _try(self, trial: "optuna.Trial") -> tuple[float, float]:
        """Trains the student of a trial. Returns how far it is from the share asked for, at most 0, and its time."""
        try:
            student = self._student(trial)
        except optional("optuna", "compress").TrialPruned:
            trial.set_constraint("share", NEAR)  # as far from what is asked for as a student can be
            raise
        self.said(student)
        best = self.best_product(student)
        missing = max(0.0, -self._margin(best))
        trial.set_user_attr(STUDENT, student.record())
        trial.set_constraint("share", missing - NEAR)
        return -missing, best.milliseconds

    def _student(self, trial: "optuna.Trial") -> Student:
        """Trains and measures the student of a trial, unless it is stopped early."""
        pruned = optional("optuna", "compress").TrialPruned
        recipe = self._recipe(trial)
        format, milliseconds = self.costs.latency.fastest(self.costs.cost(recipe.sizes))[0]
        if not self._is_small_enough(recipe, format, milliseconds):
            raise pruned(f"{milliseconds:.2f} ms or {format} is over the limits.")
        if self._is_superfluous(milliseconds):
            raise pruned("A faster student keeps enough.")
        if 0 < recipe.steps < FEWEST_STEPS:
            raise pruned("There is no time left for its training.")

        def at_rung(share: float) -> None:
            trial.set_user_attr(AT_RUNG, [share, milliseconds])
            if self._is_beaten(share, milliseconds, trial.params["length"]):
                raise pruned(f"It kept {share:.1%} in the middle of its training, and a faster student more.")

        try:
            return self.maker.make(
                trial.number,
                recipe,
                self._source(recipe),
                seed=self.settings.seed + trial.number,
                callbacks=[_StopAt(self.until - self._overhead(), self.tick)],
                at_rung=at_rung,
            )
        except FloatingPointError as error:
            logger.warning("Student %d diverged: %s", trial.number, error)
            raise pruned(str(error)) from error

    def _margin(self, product: Product) -> float:
        """How far above what is asked for a product is."""
        return product.kept.margin(self.settings.keep, self.test_units)

    def _milliseconds(self, sizes: Sizes) -> float:
        """Predicted milliseconds in the fastest format."""
        return self.costs.latency.fastest(self.costs.cost(sizes))[0][1]

    def best_product(self, student: Student) -> Product:
        """The fastest product of a student that keeps enough; if none does, the one that keeps most."""
        margins = {own.format: self._margin(own) for own in student.products}
        good = [own for own in student.products if margins[own.format] >= 0]
        if good:
            return min(good, key=lambda own: own.milliseconds)
        return max(student.products, key=lambda own: margins[own.format])

    def _recipe(self, trial: "optuna.Trial") -> Recipe:
        workshop = self.maker.workshop
        sizes = {
            name: trial.suggest_int(name, own.smallest, own.largest, step=own.step)
            for name, own in workshop.directions.by_name.items()
        }
        layers = trial.suggest_categorical("layers", LAYERS) if self._chooses_layers() else LAYERS[0]
        vocabularies = self._vocabularies()
        vocabulary = trial.suggest_categorical("vocabulary", vocabularies) if vocabularies[1:] else ALL
        choices = workshop.texts()
        texts = trial.suggest_categorical("texts", choices) if choices[1:] else ALL
        losses = trial.suggest_categorical("losses", workshop.searched_losses())
        learning_rate = trial.suggest_float("learning_rate", *LEARNING_RATES, log=True)
        length = trial.suggest_categorical("length", LENGTHS)
        seconds = min(length * self.unit, self._left() - self._overhead())
        is_teacher = sizes == workshop.directions.of_teacher()  # which needs no training
        steps = 0 if is_teacher else max(1, int(seconds / self.costs.step_seconds(sizes)))
        return Recipe(sizes, layers, vocabulary, texts, losses, learning_rate, steps)

    def _vocabularies(self) -> list[str]:
        return list(self.maker.workshop.rows)

    def _chooses_layers(self) -> bool:
        return any(name.startswith(NUM_LAYERS) for name in self.maker.workshop.directions.by_name)

    def _is_small_enough(self, recipe: Recipe, format: str, milliseconds: float) -> bool:
        """Whether the predicted latency and size are within the limits, with a tenth for errors of the prediction."""
        if self.settings.max_ms is not None and milliseconds > 1.1 * self.settings.max_ms:
            return False
        if self.settings.max_mb is None:
            return True
        return self.costs.megabytes(recipe.sizes, recipe.vocabulary, format) <= 1.1 * self.settings.max_mb

    def _is_superfluous(self, milliseconds: float) -> bool:
        """Whether a student that is as fast, and as small, keeps enough already."""
        for own in students_of(self.study):
            best = self.best_product(own)
            is_smaller = self.settings.max_mb is None or best.megabytes <= self.settings.max_mb
            if is_smaller and best.milliseconds <= milliseconds and self._margin(best) >= 0:
                return True
        return False

    def _is_beaten(self, share: float, milliseconds: float, length: int) -> bool:
        """Whether a student that is as fast was better in the middle of a training that was no longer."""
        trials = [own for own in self.study.get_trials(deepcopy=False) if AT_RUNG in own.user_attrs]
        others = [own.user_attrs[AT_RUNG] for own in trials if own.params["length"] <= length]
        return any(its <= milliseconds and better > share + WORSE for better, its in others)

    def _source(self, recipe: Recipe) -> Student | None:
        """The student to cut from: the best of the same sizes, or the smallest of the best larger ones."""
        larger = [
            own
            for own in students_of(self.study)
            if not own.recipe.is_teacher
            and _contains(own.recipe.sizes, recipe.sizes)
            and own.recipe.vocabulary in (ALL, recipe.vocabulary)
        ]
        if not larger:
            return None
        shares = {own.number: max(product.kept.share for product in own.products) for own in larger}
        best = max(shares.values())
        if best < self.settings.keep - NEAR:
            return None
        same = [own for own in larger if own.recipe.sizes == recipe.sizes]
        if same:
            return max(same, key=lambda own: shares[own.number])
        good = [own for own in larger if shares[own.number] >= best - ABOUT_AS_GOOD]
        return min(good, key=lambda own: (own.parameters, -shares[own.number]))

    def _left(self) -> float:
        return self.until - time.time()

    def _overhead(self) -> float:
        """Seconds that a student takes besides its training."""
        done = students_of(self.study)
        if not done:
            return self.costs.answer
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        own = trials[done[-1].number]
        return (own.datetime_complete - own.datetime_start).total_seconds() - done[-1].seconds


def _contains(larger: Sizes, smaller: Sizes) -> bool:
    return all(larger[name] >= size for name, size in smaller.items())


class _StopAt(TrainerCallback):
    """Stops a training that takes longer than predicted."""

    def __init__(self, time: float, tick: Callable[[], None]):
        self.time, self.tick = time, tick

    def on_step_end(self, args, state, control, **kwargs):
        self.tick()
        control.should_training_stop = control.should_training_stop or time.time() > self.time
