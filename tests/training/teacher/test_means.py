"""The mean of several teachers' outputs equals a second implementation, written with NumPy in float64."""

import numpy as np
import pytest
import torch

from hf_distill.training.losses import DIVERGENCES
from hf_distill.training.scoring.scored import MASKED_LOGIT
from hf_distill.training.teacher.means import MEANS, mean_of_bernoullis, mean_of_logits, mean_of_probabilities

kl_divergence = DIVERGENCES["forward_kl"].functions["categorical"]
KINDS = [(mean, kind) for mean, of_kind in MEANS.items() for kind in of_kind]


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def softened(logits, kind, temperature):
    return {"categorical": softmax, "binary": sigmoid, "real": lambda values: values * temperature}[kind](
        logits / temperature
    )


def expected(logits, weights, temperature, mean, kind):
    """What the loss must see: the mean as probabilities, or as numbers. Weights are `[scored, teachers]`."""
    logits = [own.double().numpy() for own in logits]
    weights = weights.double().numpy()
    if mean == "logits":
        return softened(sum(weights[:, [i]] * own for i, own in enumerate(logits)), kind, temperature)
    return sum(weights[:, [i]] * softened(own, kind, temperature) for i, own in enumerate(logits))


def make_logits(num_teachers=3, num_scored=7, num_classes=5):
    generator = torch.Generator().manual_seed(0)
    return [4 * torch.randn(num_scored, num_classes, generator=generator) for _ in range(num_teachers)]


def make_weights(num_scored=7, num_teachers=3):
    weights = torch.rand(num_scored, num_teachers, generator=torch.Generator().manual_seed(1))
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("mean", "kind"), KINDS)
def test_by_hand(mean, kind, per_row, temperature):
    logits, weights = make_logits(), make_weights()
    weights = weights if per_row else weights[:1]
    seen = MEANS[mean][kind](iter(logits), weights, temperature)
    assert seen.dtype == torch.float32
    seen = softened(seen.double().numpy(), kind, temperature)
    wanted = expected(logits, weights.expand(7, -1), temperature, mean, kind)
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=2e-6 if kind == "real" else 3e-7)


@pytest.mark.parametrize(("mean", "kind"), KINDS)
def test_equal_teachers_give_the_logits_of_one(mean, kind):
    (logits,) = make_logits(num_teachers=1)
    seen = MEANS[mean][kind]([logits] * 3, make_weights(), 2.0)
    torch.testing.assert_close(seen, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mean", "kind"), KINDS)
def test_a_weight_of_zero_selects(mean, kind):
    """Even a teacher whose logits are not finite has no effect where its weight is 0."""
    one, other, _ = make_logits()
    broken = torch.full_like(one, float("nan"))
    seen = MEANS[mean][kind]([one, broken, other], torch.tensor([[0.5, 0.0, 0.5]]), 2.0)
    torch.testing.assert_close(seen, MEANS[mean][kind]([one, other], torch.tensor([[0.5, 0.5]]), 2.0))


@pytest.mark.parametrize("mean", [mean_of_probabilities, mean_of_logits])
def test_impossible_classes_stay_impossible(mean):
    """Question answering masks the logits of padding with a large negative number."""
    logits = make_logits()
    for own in logits:
        own[:, -2:] = MASKED_LOGIT
    seen = mean(logits, torch.tensor([[0.2, 0.3, 0.5]]), 2.0)
    assert torch.isfinite(seen).all()
    cut = mean([own[:, :-2] for own in logits], torch.tensor([[0.2, 0.3, 0.5]]), 2.0)
    student = torch.zeros_like(seen)
    student[:, -2:] = MASKED_LOGIT
    assert kl_divergence(student, seen, 2.0) == pytest.approx(kl_divergence(student[:, :-2], cut, 2.0).item(), rel=1e-6)


def test_large_logits_of_bernoullis():
    seen = mean_of_bernoullis([torch.tensor([[90.0, -90.0]])] * 2, torch.tensor([[0.5, 0.5]]), 1.0)
    torch.testing.assert_close(seen, torch.tensor([[90.0, -90.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_are_computed_in_float32(dtype):
    logits = [own.to(dtype) for own in make_logits()]
    for mean in (mean_of_probabilities, mean_of_bernoullis, mean_of_logits):
        expected = mean([own.float() for own in logits], make_weights(), 2.0)
        assert torch.equal(mean(logits, make_weights(), 2.0), expected)
