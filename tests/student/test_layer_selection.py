"""Which layers are kept."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.student.layer_selection import STRATEGIES, requests_of_stacks, select_layers

counts = st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(counts=counts, strategy=st.sampled_from(sorted(STRATEGIES)))
def test_every_strategy_gives_different_layers_in_order(counts, strategy):
    num_teacher_layers, num_layers = counts
    kept = select_layers(num_teacher_layers, num_layers, strategy)
    assert len(kept) == num_layers
    assert kept == sorted(set(kept))
    assert 0 <= kept[0] <= kept[-1] < num_teacher_layers


@given(counts=counts)
def test_what_each_strategy_promises(counts):
    num_teacher_layers, num_layers = counts
    assert select_layers(num_teacher_layers, num_layers, "alternate")[0] == 0
    assert select_layers(num_teacher_layers, num_layers, "spread")[-1] == num_teacher_layers - 1
    assert select_layers(num_teacher_layers, num_layers, "first")[-1] == num_layers - 1
    assert select_layers(num_teacher_layers, num_layers, "last")[0] == num_teacher_layers - num_layers
    for strategy in ("alternate", "spread"):  # evenly: gaps differ by one layer at most
        kept = select_layers(num_teacher_layers, num_layers, strategy)
        gaps = {after - before for before, after in pairwise(kept)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@given(num_teacher_layers=st.integers(1, 100))
def test_the_whole_teacher(num_teacher_layers):
    for strategy in STRATEGIES:
        assert select_layers(num_teacher_layers, num_teacher_layers, strategy) == list(range(num_teacher_layers))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((12,), [0, 2, 4, 6, 8, 10]),  # DistilBERT's
        ((6,), [0, 2, 4]),
        ((5,), [0, 2]),
        ((1,), [0]),
        ((12, 4), [0, 3, 6, 9]),
        ((12, 4, "spread"), [0, 4, 7, 11]),
        ((12, 1, "spread"), [11]),
        ((12, None, "first"), [0, 1, 2, 3, 4, 5]),
        ((12, 3, "last"), [9, 10, 11]),
        ((12, None, [1, 5, 11]), [1, 5, 11]),
        ((12, 2, (3, 4)), [3, 4]),
    ],
)
def test_by_hand(arguments, expected):
    assert select_layers(*arguments) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers=0, but the teacher has 6 layers: use an integer from 1 to 6"),
        ({"num_layers": 7}, "num_layers=7, but the teacher has 6 layers"),
        ({"num_layers": -1}, "num_layers=-1"),
        ({"num_layers": 2.5}, "num_layers=2.5"),
        (
            {"layers": "middle"},
            "layers='middle' is not a known strategy: use one of 'alternate', 'spread', 'first', 'last', 'calibrated', "
            "'influence'",
        ),
        ({"layers": []}, "keeps no layer"),
        ({"layers": [0, 6]}, r"\[6\] out of range, the teacher has 6 layers: use different indices from 0 to 5"),
        ({"layers": [-1]}, r"\[-1\] out of range"),
        ({"layers": [0, 1.5]}, r"\[1.5\] out of range"),
        ({"layers": [0, 2, 2]}, "repeated or out of order"),
        ({"layers": [2, 0]}, "repeated or out of order"),
        ({"layers": [0, 2], "num_layers": 3}, "num_layers=3, but layers=.* has 2"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        select_layers(6, **options)


BOTH = {"encoder": 12, "decoder": 6}


@pytest.mark.parametrize(
    ("num_layers", "layers", "expected"),
    [
        (None, None, [(None, "alternate"), (None, "alternate")]),
        (3, "last", [(3, "last"), (3, "last")]),
        # Stacks that neither mapping names keep all layers.
        ({"decoder": 2}, None, [(12, "alternate"), (2, "alternate")]),
        ({"decoder": 2}, "spread", [(12, "alternate"), (2, "spread")]),
        (None, {"encoder": [0, 3]}, [(None, [0, 3]), (6, "alternate")]),
        ({"encoder": 4}, {"decoder": "first"}, [(4, "alternate"), (None, "first")]),
        ({"encoder": 4, "decoder": 1}, "calibrated", [(4, "calibrated"), (1, "calibrated")]),
        (2, {"decoder": "first"}, [(12, "alternate"), (2, "first")]),
    ],
)
def test_what_is_asked_of_each_stack(num_layers, layers, expected):
    assert list(requests_of_stacks(BOTH, num_layers, layers).values()) == expected


@pytest.mark.parametrize(
    ("num_layers", "layers", "message"),
    [
        ({"text": 2}, None, "num_layers={'text': 2} names 'text', but the teacher has the stacks 'encoder', 'decoder'"),
        (None, {"head": "last"}, "names 'head'"),
        (None, [0, 1], "the teacher has several: give indices by stack"),
    ],
)
def test_stacks_that_are_not_there(num_layers, layers, message):
    with pytest.raises(ValueError, match=message):
        requests_of_stacks(BOTH, num_layers, layers)
