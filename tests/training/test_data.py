"""Batches that are the same after a resume."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from hf_distill.training.data import RepeatableCollator


def draw(rows):
    """A collator that draws from every generator there is."""
    return {"torch": torch.rand(3), "numpy": np.random.rand(3), "python": random.random()}


def collator(seed=0, epoch=0):
    return RepeatableCollator(draw, seed, torch.tensor([epoch]))


def as_text(batch):
    return str({name: value if isinstance(value, float) else value.tolist() for name, value in batch.items()})


def make_image(value):
    return Image.fromarray(np.full((4, 4), value, dtype=np.uint8))


@pytest.mark.parametrize(
    ("row", "same", "other"),
    [
        ({"input_ids": [1, 2, 3]}, {"input_ids": [1, 2, 3]}, {"input_ids": [1, 23]}),
        ({"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([2, 1])}),
        ({"pixels": np.ones(3)}, {"pixels": np.ones(3)}, {"pixels": np.zeros(3)}),
        ({"image": make_image(1)}, {"image": make_image(1)}, {"image": make_image(2)}),
        ({"text": "a b", "label": None}, {"text": "a b", "label": None}, {"text": "a c", "label": None}),
    ],
    ids=["lists", "tensors", "arrays", "images", "texts"],
)
def test_random_numbers_follow_from_seed_epoch_and_rows(row, same, other):
    first = as_text(collator()([row]))
    torch.rand(7), np.random.rand(7), random.random()  # whatever else was drawn
    assert as_text(collator()([same])) == first
    different = [collator()([other]), collator(seed=1)([row]), collator(epoch=1)([row])]
    assert len({first, *map(as_text, different)}) == 4


def test_the_generators_are_left_as_they_were():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    collator()([{"input_ids": [1]}])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
