"""Which student is chosen, and what is said of it."""

import dataclasses
from pathlib import Path

from hf_distill import TextClassificationArguments
from hf_distill.compression.choice import candidates_of, choose, front, judge_on_test
from hf_distill.compression.kept import Kept
from hf_distill.compression.settings import Settings
from hf_distill.compression.students import Product, Recipe, Student

SETTINGS = Settings(
    teacher="teacher",
    data=TextClassificationArguments(train_file="train.csv", test_file="test.csv"),
    output=Path("small"),
    keep=0.97,
    metric=None,
    max_ms=None,
    max_mb=None,
    budget=60.0,
    formats=None,
    workers=1,
    threads=1,
    storage=None,
    sampler="tpe",
    seed=0,
)


def kept_of(share, error=0.004, units=2000):
    return Kept(share, share - 1.96 * error, share + 1.96 * error, units, 0.8 * share, 0.8)


def student_of(number, share, milliseconds, megabytes=10.0):
    recipe = Recipe({"num_layers": 2}, "spread", "all", "all", "teacher", 1e-4, 100)
    return Student(
        number, recipe, None, 1000, 900, 1.0, [Product("onnx-int8", milliseconds, megabytes, kept_of(share))]
    )


def chosen(students, measured=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return choose(candidates_of(students, measured), settings, 2000).student.number


def test_the_fastest_that_keeps_enough():
    students = [student_of(0, 1.0, 3.0), student_of(1, 0.995, 2.0), student_of(2, 0.96, 1.0)]
    assert chosen(students) == 1


def test_the_lower_bound_decides_and_not_the_share():
    assert chosen([student_of(0, 1.0, 3.0), student_of(1, 0.975, 2.0)]) == 0


def test_the_nearest_if_none_keeps_enough():
    assert chosen([student_of(0, 0.95, 3.0), student_of(1, 0.93, 1.0)]) == 0


def test_limits():
    students = [student_of(0, 1.0, 3.0, 5.0), student_of(1, 0.999, 2.0, 20.0), student_of(2, 0.94, 1.0, 4.0)]
    assert chosen(students) == 1
    assert chosen(students, max_mb=10.0) == 0
    assert chosen(students, max_ms=1.5) == 2


def test_measured_time_replaces_the_prediction():
    students = [student_of(0, 1.0, 3.0), student_of(1, 1.0, 2.0)]
    assert chosen(students, {"0, onnx-int8": 1.0, "1, onnx-int8": 2.0}) == 0


def test_front():
    students = [student_of(0, 0.99, 3.0), student_of(1, 0.95, 1.0), student_of(2, 0.94, 2.0), student_of(3, 0.97, 2.0)]
    assert [own.student.number for own in front(candidates_of(students))] == [1, 3, 0]


def test_verdict():
    (candidate,) = candidates_of([student_of(0, 0.99, 3.0, 8.0)])
    assert judge_on_test(candidate, kept_of(0.99), SETTINGS).is_met
    not_shown = judge_on_test(candidate, kept_of(0.975), SETTINGS)
    assert not not_shown.is_met
    assert "its lower bound is below 97.0%. About 4,917 test rows would show it" in not_shown.reasons[0]
    too_near = judge_on_test(candidate, kept_of(0.971), SETTINGS).reasons[0]
    assert "test rows would show it" not in too_near
    assert "A longer budget" in too_near
    too_little = judge_on_test(candidate, kept_of(0.95), SETTINGS)
    assert "More unlabelled texts, a longer budget or a lower keep would help" in too_little.reasons[0]
    limits = judge_on_test(candidate, kept_of(0.99), dataclasses.replace(SETTINGS, max_ms=2.0, max_mb=5.0))
    assert [reason.split(",")[0] for reason in limits.reasons] == ["It takes 3.00 ms", "It has 8.0 MB"]


def test_records_are_read_as_written():
    student = student_of(3, 0.98, 2.0)
    assert Student.of(student.record()) == student
