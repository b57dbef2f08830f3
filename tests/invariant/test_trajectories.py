"""Numbers stay the same unless a change is meant to change them."""

import json

import pytest

from tests.invariant.trajectories import CASES, STORED, trajectory


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name):
    stored = json.loads(STORED.read_text())[name]
    assert len(stored) == 6
    assert len({round(step["loss"], 3) for step in stored}) == 6  # the training makes progress
    for step, now in zip(stored, trajectory(**CASES[name]), strict=True):
        assert now == pytest.approx(step, rel=1e-4)


def test_nothing_is_stored_that_is_not_tried():
    assert json.loads(STORED.read_text()).keys() == CASES.keys()
