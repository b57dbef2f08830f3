"""One mechanism for every architecture: whole, the student is its teacher; cut, it works like any model."""

import pytest
import torch

from hf_distill import make_student
from hf_distill.student.architectures import example_inputs, find_layer_stacks
from tests.student.tiny_models import AUTO_CLASS_OF_TYPE, NUM_LAYERS, tiny_model

tried = []
"""The model types that the test of all types has run."""


def outputs(model, inputs):
    """The tensors that `model` gives, but for its cache."""
    given = model(**inputs, return_dict=True)
    return {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}


def shared_weights(model):
    """The groups of names that stand for one weight."""
    names = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        names.setdefault(id(weight), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


@pytest.mark.parametrize("model_type", AUTO_CLASS_OF_TYPE)
def test_every_type(model_type, tmp_path):
    teacher = tiny_model(model_type)
    inputs = example_inputs(teacher)
    teacher_outputs = outputs(teacher, inputs)
    assert teacher_outputs

    # With all layers it is the teacher.
    whole = make_student(teacher, num_layers=NUM_LAYERS)
    whole_outputs = outputs(whole, inputs)
    assert whole_outputs.keys() == teacher_outputs.keys()
    for name, expected in teacher_outputs.items():
        assert torch.equal(whole_outputs[name], expected), name

    # With half of them it is smaller, tied like the teacher, and shares no memory with it.
    student = make_student(teacher)
    stacks, teacher_stacks = find_layer_stacks(student), find_layer_stacks(teacher)
    assert [stack.num_layers for stack in stacks.values()] == [NUM_LAYERS // 2] * len(teacher_stacks)
    assert student.num_parameters() < teacher.num_parameters()
    tied = shared_weights(teacher)
    in_a_dropped_layer = [group for group in tied if not set(group) <= set(student.state_dict())]
    assert shared_weights(student) == [group for group in tied if group not in in_a_dropped_layer]
    memory = {weight.data_ptr() for weight in teacher.parameters()}
    assert not any(weight.data_ptr() in memory for weight in student.parameters())

    # It saves and loads as what it is.
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    before, after = student.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    for name, expected in outputs(student, inputs).items():
        torch.testing.assert_close(outputs(loaded, inputs)[name], expected, rtol=1e-4, atol=1e-5)

    # It trains.
    student.train()
    (name, expected), *_ = teacher_outputs.items()
    torch.manual_seed(0)
    loss = (outputs(student, inputs)[name] - expected.detach()).square().mean()
    loss.backward()
    gradients = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert len(gradients) > 10
    # A step that should take a twentieth off the loss.
    rate = 0.05 * loss.item() / sum(gradient.square().sum().item() for gradient in gradients)
    torch.optim.SGD(student.parameters(), lr=rate).step()
    torch.manual_seed(0)
    assert (outputs(student, inputs)[name] - expected.detach()).square().mean() < loss
    tried.append(model_type)


def test_all_types_were_tried(request):
    chosen = [item for item in request.session.items if item.originalname == "test_every_type"]
    assert len(tried) == len(chosen)
    assert len(AUTO_CLASS_OF_TYPE) >= 60
