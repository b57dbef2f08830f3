"""A teacher whose weights need no gradient, as after a distillation, is cut like any other."""

import pytest
import torch

from hf_distill import make_student
from tests.conftest import collate, make_model, make_rows


@pytest.mark.parametrize("width", ["magnitude", "activation", "taylor"])
def test_frozen_teacher(width):
    teacher = make_model("bert", "classification")
    data = {} if width == "magnitude" else {"calibration_data": [collate(make_rows("classification"))]}
    options = {"intermediate_size": 12, "width": width, **data}
    expected = make_student(teacher, **options).state_dict()
    teacher.requires_grad_(False)
    found = make_student(teacher, **options).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
