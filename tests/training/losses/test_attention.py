"""The losses over layers on given tensors: padding, pieces, precision."""

import dataclasses

import pytest
import torch

from hf_distill.training.losses.attention import AttentionLoss, RelationLoss
from hf_distill.training.losses.base import ScoredItems, Signals
from hf_distill.training.losses.batch import visible_to_both
from hf_distill.training.losses.hidden_states import HIDDEN_LOSSES, HiddenLoss
from hf_distill.training.scoring import pieces

BATCH, HEADS, KEY_HEADS, LENGTH, HEAD_WIDTH = 2, 4, 2, 6, 4
LOSSES = {
    **{f"hidden {name}": lambda distance=distance: HiddenLoss(distance) for name, distance in HIDDEN_LOSSES.items()},
    "attention": AttentionLoss,
    "attention mean": lambda: AttentionLoss(mean_of_heads=True),
    "relation": lambda: RelationLoss(relation_heads=2),
}
every_loss = pytest.mark.parametrize("make_loss", LOSSES.values(), ids=LOSSES)


STUDENT, TEACHER = 0, 1


def make_signals(of, dtype=torch.float64):
    """Signals with grouped-query attention. Those of the student are leaves with gradients."""
    generator = torch.Generator().manual_seed(of)

    def tensor(*shape):
        return torch.randn(BATCH, *shape, generator=generator).to(dtype).requires_grad_(of == STUDENT)

    return Signals(
        hidden_states=tensor(LENGTH, 8),
        queries=tensor(HEADS, LENGTH, HEAD_WIDTH),
        keys=tensor(KEY_HEADS, LENGTH, HEAD_WIDTH),
        values=tensor(KEY_HEADS, LENGTH, HEAD_WIDTH),
        scaling=0.5,
    )


def make_items(*lengths):
    attended = torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)
    return ScoredItems(state_weights=attended.float(), visible=visible_to_both(attended))


def value_and_gradients(loss, student, teacher, items):
    """The value, and the gradients of the student's signals that the loss reads."""
    value = loss(student, teacher, items)
    leaves = [tensor for tensor in vars(student).values() if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
    return value.detach(), [g for g in torch.autograd.grad(value, leaves, allow_unused=True) if g is not None]


def assert_equal(results, expected, **tolerance):
    torch.testing.assert_close(results, expected, **tolerance)
    assert len(results[1]) > 0


@every_loss
@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
def test_what_is_in_padding_changes_nothing(make_loss, filling):
    items = make_items(LENGTH, LENGTH - 2)

    def filled(signals):
        """The same signals, but with other numbers in the padding of the second row."""
        tensors = {name: value for name, value in vars(signals).items() if isinstance(value, torch.Tensor)}
        for name, tensor in tensors.items():
            tensors[name] = tensor.detach().clone()
            padding = tensors[name][1, -2:] if name == "hidden_states" else tensors[name][1, :, -2:]
            padding.fill_(filling)
            tensors[name].requires_grad_(tensor.requires_grad)
        return dataclasses.replace(signals, **tensors)

    student, teacher = make_signals(STUDENT), make_signals(TEACHER)
    expected = value_and_gradients(make_loss(), student, teacher, items)
    assert_equal(value_and_gradients(make_loss(), filled(student), filled(teacher), items), expected, rtol=0, atol=0)


@every_loss
def test_a_few_heads_at_a_time(make_loss, monkeypatch):
    """The products of other heads are not kept, and the gradient is the same."""
    student, teacher, items = make_signals(STUDENT), make_signals(TEACHER), make_items(LENGTH, LENGTH - 2)
    expected = value_and_gradients(make_loss(), student, teacher, items)
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS_ON_CPU", 1)
    assert_equal(value_and_gradients(make_loss(), student, teacher, items), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert make_loss()(student, teacher, items).item() == pytest.approx(expected[0].item(), rel=1e-12)


@pytest.mark.parametrize("has_bias", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("mean_of_heads", [False, True])
def test_position_bias(has_bias, mean_of_heads, monkeypatch):
    """T5 adds a bias to the products, in which every position and head has a share."""
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS_ON_CPU", 1)
    generator = torch.Generator().manual_seed(2)
    biases = [torch.randn(1, HEADS, LENGTH, LENGTH, generator=generator).double() for _ in has_bias]
    student, teacher = (
        dataclasses.replace(make_signals(of), position_bias=biases[of].requires_grad_(of == STUDENT) if own else None)
        for of, own in zip((STUDENT, TEACHER), has_bias, strict=True)
    )
    items = make_items(LENGTH, LENGTH)

    def scores(signals):
        keys = signals.keys.repeat_interleave(HEADS // KEY_HEADS, dim=1)
        products = signals.scaling * torch.einsum("bhik,bhjk->bhij", signals.queries, keys)
        products = products if signals.position_bias is None else products + signals.position_bias
        return products.mean(1, keepdim=True) if mean_of_heads else products

    expected = (scores(student) - scores(teacher)).square().mean((1, 3)).sum()
    leaves = [tensor for tensor in (student.queries, student.keys, student.position_bias) if tensor is not None]
    results = value_and_gradients(AttentionLoss(mean_of_heads=mean_of_heads), student, teacher, items)
    assert_equal(results, (expected.detach(), list(torch.autograd.grad(expected, leaves))))


@pytest.mark.parametrize("name", ["attention", "attention mean", "relation"])
def test_autocast_does_not_round_the_products(name):
    """Products in bf16 would change the gradient by more than the rounded queries and keys do."""
    student, teacher = (make_signals(of, torch.bfloat16) for of in (STUDENT, TEACHER))
    items, loss = make_items(LENGTH, LENGTH - 2), LOSSES[name]()

    def value_under_autocast(*given):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(*given)

    expected = value_and_gradients(loss, student, teacher, items)
    assert expected[0].dtype == torch.float32
    assert_equal(value_and_gradients(value_under_autocast, student, teacher, items), expected, rtol=0, atol=0)
