"""What a search tries next, on a study whose students need no training."""

import dataclasses
import time
from types import SimpleNamespace

import optuna
import pytest

from hf_distill.compression.directions import Direction
from hf_distill.compression.search import LENGTHS, STUDENT, Search, open_study, students_of
from hf_distill.compression.students import Product, Recipe, Student
from tests.compression.test_choice import SETTINGS, kept_of

SIZES = {"num_layers": 4, "intermediate_size": 32}
DISTRIBUTIONS = {
    "num_layers": optuna.distributions.IntDistribution(1, 6),
    "intermediate_size": optuna.distributions.IntDistribution(8, 48, step=8),
    "length": optuna.distributions.CategoricalDistribution(LENGTHS),
    "texts": optuna.distributions.CategoricalDistribution(["all", "labelled"]),
}


@pytest.fixture
def search(tmp_path):
    settings = dataclasses.replace(SETTINGS, output=tmp_path, keep=0.95)
    settings.folder.mkdir(parents=True)
    workshop = SimpleNamespace(settings=settings, test_units=2000)
    maker = SimpleNamespace(workshop=workshop, costs=None)
    return Search(maker, open_study(settings), until=0.0, unit=1.0, said=print)


def add(search, share, milliseconds, sizes=None, parameters=1000, steps=100):
    """Adds a finished trial with a student."""
    sizes = {**SIZES, **(sizes or {})}
    recipe = Recipe(sizes, "spread", "all", "all", "teacher", 1e-4, steps)
    product = Product("onnx-int8", milliseconds, 1.0, kept_of(share))
    search.study.enqueue_trial({**sizes, "length": 1, "texts": "all"})
    trial = search.study.ask(DISTRIBUTIONS)
    student = Student(trial.number, recipe, None, parameters, 900, 1.0, [product])
    trial.set_user_attr(STUDENT, student.record())
    trial.set_constraint("share", 0.0)
    search.study.tell(trial, (0.0, milliseconds))
    return student


def recipe_of(**sizes):
    return Recipe({**SIZES, **sizes}, "spread", "all", "all", "teacher", 1e-4, 100)


def test_students_are_read_from_the_study(search):
    first = add(search, 0.99, 2.0)
    search.study.ask()  # still in training, or lost with its process
    assert students_of(search.study) == [first]


def test_nothing_larger_was_trained(search):
    assert search._source(recipe_of()) is None
    add(search, 0.99, 1.0, {"num_layers": 2})
    assert search._source(recipe_of()) is None


def test_cut_from_the_smallest_of_the_best(search):
    add(search, 0.99, 3.0, parameters=2000)
    good = add(search, 0.985, 2.0, {"intermediate_size": 16}, parameters=1500)
    add(search, 0.93, 1.0, {"intermediate_size": 16}, parameters=1400)
    assert search._source(recipe_of(num_layers=2, intermediate_size=16)) == good


def test_the_same_sizes_again_mean_more_training(search):
    add(search, 0.99, 3.0, parameters=2000)
    add(search, 0.94, 2.0, {"num_layers": 2})
    better = add(search, 0.95, 2.0, {"num_layers": 2})
    assert search._source(recipe_of(num_layers=2)) == better


def test_not_cut_from_the_teacher_in_another_format(search):
    smaller = add(search, 0.97, 5.0)
    add(search, 1.0, 9.0, {"num_layers": 6}, steps=0)
    assert search._source(recipe_of(num_layers=3)) == smaller


def test_not_cut_from_a_bad_one(search):
    add(search, 0.8, 3.0)
    assert search._source(recipe_of(num_layers=2)) is None


def test_not_trained_if_a_faster_one_keeps_enough(search):
    add(search, 1.0, 2.0)
    assert search._is_superfluous(2.5)
    assert not search._is_superfluous(1.5)
    search.settings = dataclasses.replace(search.settings, max_mb=0.5)
    assert not search._is_superfluous(2.5)


def test_ends_when_the_smallest_keeps_enough(search, monkeypatch):
    """Every other proposal would be superfluous, and the rest of the budget a loop without a training."""
    search.maker.workshop.directions = SimpleNamespace(
        shares=lambda *shares: SIZES, of_teacher=lambda: SIZES, by_name={}
    )
    latency = SimpleNamespace(fastest=lambda cost: [("onnx-int8", 2.0)])
    search.costs = SimpleNamespace(cost=lambda sizes: None, latency=latency, answer=1.0, step_seconds=lambda sizes: 0.1)
    search.until = time.time() + 3600
    tried = []

    def student(trial):
        tried.append(trial.number)
        return add(search, 1.0, 2.0 if len(tried) == 3 else 3.0)

    monkeypatch.setattr(search, "_try", lambda trial: (0.0, student(trial).products[0].milliseconds))
    search.run()
    assert len(tried) == 3


@pytest.mark.parametrize(("workers", "layers"), [(1, [4, 3, 2]), (2, [4, 5, 3, 2])])
def test_another_worker_begins_with_a_larger_student(search, workers, layers):
    """The others are cut from the first one, which is still in training then."""
    sizes = {(0.67, 1.0): 4, (0.83, 1.0): 5, (0.67, 0.5): 3, (0.5, 0.5): 2}
    workshop = search.maker.workshop
    workshop.directions = SimpleNamespace(by_name={}, shares=lambda *own: {"num_layers": sizes[own[:2]]})
    workshop.searched_losses, workshop.texts, workshop.rows = lambda: ["teacher"], lambda: ["all"], {"all": None}
    search.settings = dataclasses.replace(search.settings, workers=workers)
    search.costs = SimpleNamespace(cost=lambda sizes: SimpleNamespace(products=1.0))
    search.start()
    queued = [trial.system_attrs["fixed_params"] for trial in search.study.get_trials()]
    assert [own["num_layers"] for own in queued] == layers


@pytest.mark.parametrize(
    ("num_rows", "texts"),
    [
        ((2000, 4000, 9000), ["labelled", "labelled and variants"]),
        ((1200, 3000, 9000), ["labelled and variants", "all"]),
        ((500, 1000, 2000), ["all", "all"]),
    ],
)
def test_first_students_read_labelled_rows_unless_they_read_them_too_often(search, num_rows, texts):
    sizes = {0.67: {"num_layers": 4}, 0.5: {"num_layers": 3}}
    workshop = search.maker.workshop
    workshop.directions = SimpleNamespace(
        by_name={"num_layers": None}, shares=lambda layers, *widths: sizes.get(layers, sizes[0.5])
    )
    workshop.searched_losses = lambda: ["teacher", "teacher and labels"]
    choices = dict(zip(["labelled", "labelled and variants", "all"], map(range, num_rows), strict=True))
    workshop.texts = lambda: [*choices]
    workshop.rows = {"all": None}
    workshop.training_rows = lambda vocabulary, texts: choices[texts]
    search.unit = 30.0
    search.costs = SimpleNamespace(
        cost=lambda sizes: SimpleNamespace(products=1.0),
        step_seconds=lambda sizes: 1.0 if sizes["num_layers"] == 4 else 0.2,
    )
    search.start()  # 4 x 30 steps of 32 rows, 3840; then 2 x 30 / 0.2, 9600
    queued = [trial.system_attrs["fixed_params"] for trial in search.study.get_trials()]
    assert [own["texts"] for own in queued] == texts
    assert [own["length"] for own in queued] == [4, 2]


def test_ends_when_no_whole_unit_is_left(search):
    search.unit = 60.0
    search.maker.workshop.directions = SimpleNamespace(shares=lambda *shares: SIZES)
    search.costs = SimpleNamespace(answer=5.0, step_seconds=lambda sizes: 0.1)
    search.until = time.time() + 30
    assert search._has_time()  # for the only student there may be
    add(search, 0.99, 1.0)
    assert not search._has_time()
    search.until = time.time() + 70
    assert search._has_time()


def test_stopped_if_a_faster_one_was_better_in_the_middle(search):
    search.study.enqueue_trial({**SIZES, "length": 2, "texts": "all"})
    trial = search.study.ask(DISTRIBUTIONS)
    trial.set_user_attr("at_rung", [0.96, 2.0])
    assert search._is_beaten(0.9, 2.5, 2)
    assert not search._is_beaten(0.95, 2.5, 2)
    assert not search._is_beaten(0.9, 1.5, 2)
    assert not search._is_beaten(0.9, 2.5, 1)  # the other one has trained for longer


@pytest.fixture
def stepping(search, monkeypatch):
    """A search of layers and feed-forward width, whose times are the product of both."""
    by_name = {"num_layers": Direction("num_layers", 1, 6, 1), "intermediate_size": Direction("inner", 8, 48, 8)}
    whole = {name: own.largest for name, own in by_name.items()}
    workshop = search.maker.workshop
    workshop.directions = SimpleNamespace(by_name=by_name, of_teacher=lambda: whole)
    workshop.searched_losses, workshop.texts, workshop.rows = lambda: ["teacher"], lambda: ["all"], {"all": None}
    latency = SimpleNamespace(fastest=lambda cost: [("onnx-int8", cost.products)])
    search.costs = SimpleNamespace(
        cost=lambda sizes: SimpleNamespace(products=sizes["num_layers"] * sizes["intermediate_size"]), latency=latency
    )
    return search


def queued_by(search):
    search._propose()
    return [trial.system_attrs["fixed_params"] for trial in search.study.get_trials() if trial.state.name == "WAITING"]


def sizes_of(queued):
    return [(own["num_layers"], own["intermediate_size"]) for own in queued]


def test_steps_down_from_the_fastest_that_keeps_enough(stepping):
    add(stepping, 1.0, 200.0, {"num_layers": 5, "intermediate_size": 40})
    add(stepping, 1.0, 160.0, {"num_layers": 4, "intermediate_size": 40})
    add(stepping, 0.9, 32.0, {"num_layers": 4, "intermediate_size": 8})
    queued = queued_by(stepping)  # at most 128, in each direction
    assert sizes_of(queued) == [(3, 40), (4, 32)]
    assert {own["length"] for own in queued} == {LENGTHS[1]}


def test_steps_up_from_the_nearest_if_none_keeps_enough(stepping):
    add(stepping, 0.9, 128.0, {"num_layers": 4, "intermediate_size": 32})
    add(stepping, 0.8, 96.0, {"num_layers": 3, "intermediate_size": 32})
    queued = queued_by(stepping)
    assert sizes_of(queued) == [(5, 40)]
    assert queued[0]["length"] == LENGTHS[1]


def test_steps_up_as_far_as_the_teacher(stepping):
    add(stepping, 0.9, 128.0, {"num_layers": 4, "intermediate_size": 32})
    add(stepping, 0.85, 200.0, {"num_layers": 5, "intermediate_size": 40})
    assert sizes_of(queued_by(stepping)) == [(6, 48)]  # the nearest size above five and a half layers, and above 44


def test_no_step_up_from_the_teacher(stepping):
    add(stepping, 0.9, 288.0, {"num_layers": 6, "intermediate_size": 48}, steps=0)  # int8 loses too much
    assert queued_by(stepping) == []


def test_the_teacher_itself_is_not_trained(stepping):
    stepping.costs.step_seconds = lambda sizes: 0.1
    stepping.until = time.time() + 60
    teacher, smaller = {"num_layers": 6, "intermediate_size": 48}, {"num_layers": 6, "intermediate_size": 40}
    stepping.costs.answer = 1.0
    for sizes, steps in [(teacher, 0), (smaller, 40)]:
        stepping._queue(sizes, LENGTHS[-1])
        assert stepping._recipe(stepping.study.ask()).steps == steps


def test_the_teacher_itself_is_not_trained_further(stepping):
    teacher = {"num_layers": 6, "intermediate_size": 48}
    add(stepping, 0.92, 240.0, {"num_layers": 5, "intermediate_size": 48})
    add(stepping, 0.945, 288.0, teacher, steps=0)
    assert sizes_of(queued_by(stepping)) == [(5, 48)]


def test_no_step_twice(stepping):
    add(stepping, 1.0, 160.0, {"num_layers": 4, "intermediate_size": 40})
    add(stepping, 0.9, 120.0, {"num_layers": 3, "intermediate_size": 40})
    assert sizes_of(queued_by(stepping)) == [(4, 32)]
    assert sizes_of(queued_by(stepping)) == [(4, 32)]  # as long as it waits
    add(stepping, 0.9, 128.0, {"num_layers": 4, "intermediate_size": 32})


def test_a_student_that_keeps_almost_enough_is_trained_further(stepping):
    add(stepping, 1.0, 8.0, {"num_layers": 1, "intermediate_size": 8})  # no step down from here
    add(stepping, 0.5, 7.0, {"num_layers": 2})
    add(stepping, 0.5, 7.0, {"num_layers": 3})
    add(stepping, 0.94, 7.0)
    assert queued_by(stepping) == [{**SIZES, "length": LENGTHS[-1], "texts": "all"}]
    assert len(queued_by(stepping)) == 1


def test_not_trained_further_by_two_workers_at_once(stepping):
    add(stepping, 1.0, 8.0, {"num_layers": 1, "intermediate_size": 8})
    add(stepping, 0.95, 7.0)
    add(stepping, 0.93, 7.0, {"num_layers": 2})
    add(stepping, 0.5, 7.0, {"num_layers": 3})
    assert [own["num_layers"] for own in queued_by(stepping)] == [4]
    stepping.study.ask(DISTRIBUTIONS)  # the other worker trains it
    assert [own["num_layers"] for own in queued_by(stepping)] == [2]
