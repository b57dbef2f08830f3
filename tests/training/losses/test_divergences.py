"""Every divergence for every distribution, against numpy in float64 from the formula. A new divergence is one row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.training.losses import DIVERGENCES, DivergenceLoss, ScoredItems, Signals
from hf_distill.training.losses.arguments import DivergenceName
from hf_distill.training.losses.divergences.distributions import at_least_fp32, over_distributions
from hf_distill.training.losses.divergences.standardization import standardized
from hf_distill.training.losses.logits import PARAMETERS
from hf_distill.training.scoring.scored import MASKED_LOGIT
from hf_distill.training.scoring.top_k import TopK, log_tail

EVENTS = ("categorical", "binary", "top k")


@dataclass
class Row:
    """The formula of a divergence for one position.

    Attributes:
        formula: of the teacher's probabilities p and the student's q of some events; for a divergence of logits, of the
            logits of teacher and student, divided by the temperature, and the label.
        distributions: where it is defined.
        power: the power of the temperature that it is multiplied by.
        parameters: other values than the defaults.
        largest: the largest value of a position at temperature 1, if it has one.
    """

    formula: Callable
    distributions: tuple[str, ...] = EVENTS
    power: int = 2
    parameters: dict[str, float] = field(default_factory=dict)
    largest: float = np.inf


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jsd(p, q):
    m = 0.3 * p + 0.7 * q
    return 0.3 * kl(p, m) + 0.7 * kl(q, m)


def dkd(teacher, student, label):
    (p, q), others = (softmax(teacher), softmax(student)), np.arange(len(teacher)) != label
    p_others, q_others = p[others].sum(), q[others].sum()
    of_target = kl([p[label], p_others], [q[label], q_others])
    return 0.5 * of_target + 3 * kl(p[others] / p_others, q[others] / q_others)


ROWS = {
    "forward_kl": Row(kl, (*EVENTS, "real")),
    "reverse_kl": Row(lambda p, q: kl(q, p)),
    "jsd": Row(jsd, parameters={"divergence_beta": 0.3}, largest=np.log(2)),
    "skew_kl": Row(lambda p, q: kl(p, 0.2 * p + 0.8 * q), parameters={"divergence_skew": 0.2}, largest=-np.log(0.2)),
    "skew_reverse_kl": Row(
        lambda p, q: kl(q, 0.8 * p + 0.2 * q), parameters={"divergence_skew": 0.2}, largest=-np.log(0.2)
    ),
    "tvd": Row(lambda p, q: np.abs(p - q).sum() / 2, power=1, largest=1.0),
    "mse": Row(lambda z, y, label: ((z - y) ** 2).mean(), ("categorical", "binary", "real")),
    "dkd": Row(dkd, ("categorical",), parameters={"dkd_alpha": 0.5, "dkd_beta": 3.0}),
    "dist": Row(
        lambda z, y, label: 1 - np.corrcoef(softmax(z), softmax(y))[0, 1], ("categorical",), power=0, largest=2.0
    ),
}
MATRIX = [(name, distribution) for name, row in ROWS.items() for distribution in row.distributions]
SOFTMAX = [name for name, row in ROWS.items() if "categorical" in row.distributions]
TOP_K = [name for name, row in ROWS.items() if "top k" in row.distributions]
matrix = pytest.mark.parametrize(("name", "distribution"), MATRIX)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def by_definition(name, distribution, student_logits, teacher_logits, temperature, labels, ids):
    """The sum over the positions, one at a time."""
    row, total = ROWS[name], 0.0
    for student, teacher, label, top in zip(student_logits, teacher_logits, labels, ids, strict=True):
        z, y = teacher / temperature, student / temperature
        if distribution == "real":
            total += ((z - y) ** 2).mean()
        elif name in ("mse", "dkd", "dist"):
            total += 0 if label == -100 and name == "dkd" else row.formula(z, y, label)
        elif distribution == "categorical":
            total += row.formula(softmax(z), softmax(y))
        elif distribution == "binary":
            yes = (1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-y)))
            total += np.mean([row.formula(*(np.array([v, 1 - v]) for v in pair)) for pair in zip(*yes, strict=True)])
        else:
            others = np.ones(len(z), bool)
            others[top] = False
            total += row.formula(*(np.append(v[top], v[others].sum()) for v in (softmax(z), softmax(y))))
    return temperature ** (2 if distribution == "real" else row.power) * total


def make_loss(name, distribution="categorical", temperature=2.0, standardize_logits=False):
    return DivergenceLoss(name, temperature, distribution, standardize_logits, **ROWS[name].parameters)


def compute(loss, student_logits, teacher_logits, labels=None, ids=None):
    """The value of a loss, in the precision of the logits. For top k, the teacher is cut to the tokens `ids`."""
    if loss.distribution == "top k":
        log_probs = (at_least_fp32(teacher_logits) / loss.temperature).log_softmax(-1)
        teacher_logits = TopK(log_probs.gather(1, ids), ids, log_tail(log_probs, ids).squeeze(1))
    given = {"labels": labels} if loss.needs.labels else {}
    return loss.function(student_logits, teacher_logits, loss.temperature, **given, **loss.parameters_of_divergence)


def make_logits(seed=0, shape=(4, 5), scale=2.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    student, teacher = (torch.tensor(values).to(dtype) for values in rng.normal(scale=scale, size=(2, *shape)))
    labels = torch.tensor(rng.integers(0, shape[1], shape[0]))
    ids = torch.tensor(np.argsort(rng.random(shape), axis=1)[:, : max(1, shape[1] - 2)])
    return student, teacher, labels, ids


def test_every_divergence_has_a_row():
    assert ROWS.keys() == DIVERGENCES.keys() == set(get_args(DivergenceName))
    # "samples" has tests of its own, since it is not a divergence between two distributions.
    assert {name: set(row.functions) - {"samples"} for name, row in DIVERGENCES.items()} == {
        name: set(row.distributions) for name, row in ROWS.items()
    }
    assert set(PARAMETERS) == {name for row in ROWS.values() for name in row.parameters}
    for row in DIVERGENCES.values():
        assert row.citation.startswith("@article{")
        assert row.description


@matrix
@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(3, 8)),
    seed=st.integers(0, 2**16),
    temperature=st.floats(0.5, 10),
    scale=st.floats(0.1, 10),
)
def test_value(name, distribution, shape, seed, temperature, scale):
    student, teacher, labels, ids = make_logits(seed, shape, scale)
    labels[1::3] = -100
    value = compute(make_loss(name, distribution, temperature), student, teacher, labels, ids)
    args = (array.numpy() for array in (student, teacher))
    expected = by_definition(name, distribution, *args, temperature, labels.numpy(), ids.numpy())
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-9 * temperature**2)
    if len(student):
        mean = value.item() / len(student) / temperature ** ROWS[name].power
        assert -1e-9 <= mean <= ROWS[name].largest + 1e-9


@matrix
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_in_single_and_half_precision(name, distribution, temperature):
    """Half-precision logits are converted first; what is returned is in single precision."""
    student, teacher, labels, ids = make_logits(dtype=torch.bfloat16)
    loss = make_loss(name, distribution, temperature)
    exact = compute(loss, student.double(), teacher.double(), labels, ids)
    single = compute(loss, student.float(), teacher.float(), labels, ids)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.equal(compute(loss, student, teacher, labels, ids), single)


@matrix
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_0_on_equal_logits(name, distribution, dtype):
    logits, _, labels, ids = make_logits(scale=5.0, dtype=dtype)
    student = logits.clone().requires_grad_()
    value = compute(make_loss(name, distribution), student, logits, labels, ids)
    value.backward()
    assert abs(value.item()) < 1e-5
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "distribution", "standardize"),
    [*((*case, False) for case in MATRIX), *((n, "categorical", True) for n in SOFTMAX)],
)
def test_gradient(name, distribution, standardize):
    student, teacher, labels, ids = make_logits()
    labels[0] = -100
    loss = make_loss(name, distribution)

    def of_student(student):
        logits = standardized(student, teacher) if standardize else (student, teacher)
        return compute(loss, *logits, labels, ids)

    assert torch.autograd.gradcheck(of_student, student.requires_grad_())


@matrix
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_huge_logits_are_finite(name, distribution, dtype, temperature):
    student = torch.tensor([[1e4, -1e4, 0.0, 50.0], [-1e4, 1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0, -50.0], [-1e4, 1e4, 1e4, 0.0]], dtype=dtype)
    labels, ids = torch.tensor([1, 0]), torch.tensor([[1, 2], [1, 2]])
    loss = make_loss(name, distribution, temperature)
    for standardize in (False, True) if distribution == "categorical" else (False,):
        logits = standardized(student, teacher) if standardize else (student, teacher)
        value = compute(loss, *logits, labels, ids)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert value > 0


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("standardize", [False, True], ids=["", "standardised"])
def test_masked_classes_and_columns_of_the_student_alone_are_left_out(name, standardize):
    """Classes that a position cannot have, as padding in question answering; a vocabulary that is padded further."""
    student, teacher, labels, _ = make_logits(dtype=torch.float32)
    loss = make_loss(name, standardize_logits=standardize)

    def value_and_gradient(student, teacher):
        student = student.clone().requires_grad_()
        value = loss(Signals(logits=student), Signals(logits=teacher), ScoredItems(labels=labels))
        return value.item(), *torch.autograd.grad(value, student)

    value, gradient = value_and_gradient(student, teacher)
    masked = torch.full((4, 2), MASKED_LOGIT)
    more, own = value_and_gradient(*(torch.cat([logits, masked], 1) for logits in (student, teacher)))
    assert more == pytest.approx(value, rel=1e-5)
    assert not own[:, 5:].any()
    assert torch.allclose(own[:, :5], gradient, rtol=1e-4, atol=1e-6)
    more, own = value_and_gradient(torch.cat([student, torch.randn(4, 3)], 1), teacher)
    assert more == value
    assert not own[:, 5:].any()


@pytest.mark.parametrize("name", TOP_K)
def test_top_k_is_at_most_the_whole_and_equals_it_with_all_tokens(name):
    student, teacher, _, _ = make_logits()
    whole = compute(make_loss(name), student, teacher).item()
    order = teacher.argsort(1, descending=True)
    parts = [compute(make_loss(name, "top k"), student, teacher, ids=order[:, :k]).item() for k in range(1, 6)]
    assert parts[-1] == pytest.approx(whole, rel=1e-9)
    assert all(part <= whole * (1 + 1e-9) for part in parts)
    assert parts[0] < 0.9 * whole


@matrix
def test_gradient_does_not_shrink_with_temperature(name, distribution):
    student, teacher, labels, ids = make_logits()
    norms = []
    for temperature in (30.0, 300.0):
        value = compute(make_loss(name, distribution, temperature), student.requires_grad_(), teacher, labels, ids)
        norms.append(torch.autograd.grad(value, student)[0].norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_jsd_goes_to_forward_and_reverse_kl():
    student, teacher, _, _ = make_logits()
    for beta, limit in ((1e-7, "forward_kl"), (1 - 1e-7, "reverse_kl")):
        value = DivergenceLoss("jsd", divergence_beta=beta).function(student, teacher, 2.0, divergence_beta=beta)
        assert value.item() / 1e-7 == pytest.approx(compute(make_loss(limit), student, teacher).item(), rel=1e-4)


def test_dkd_is_forward_kl_with_the_teachers_weight():
    """Forward KL = TCKD + (1 - p_target) NCKD, for one position."""
    student, teacher, labels, _ = make_logits(shape=(1, 5))
    rest = 1 - (teacher / 2).softmax(-1)[0, labels[0]].item()
    value = DIVERGENCES["dkd"].functions["categorical"](student, teacher, 2.0, labels, dkd_alpha=1, dkd_beta=rest)
    assert value.item() == pytest.approx(compute(make_loss("forward_kl"), student, teacher).item(), rel=1e-9)


def test_dist_of_equal_probabilities_has_no_gradient():
    student, teacher, _, _ = make_logits(dtype=torch.float32)
    student = torch.zeros_like(student).requires_grad_()
    value = compute(make_loss("dist"), student, teacher)
    value.backward()
    assert value.item() == len(student)
    assert not student.grad.any()


@given(seed=st.integers(0, 2**16), scale=st.floats(0.1, 100))
def test_standardized(seed, scale):
    student, teacher, _, _ = make_logits(seed, scale=scale)
    for ours, logits in zip(standardized(student, teacher), (student.numpy(), teacher.numpy()), strict=True):
        expected = (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)
        assert np.allclose(ours.numpy(), expected, rtol=1e-6)
    whole = make_loss("forward_kl", standardize_logits=True)
    value = whole(Signals(logits=student), Signals(logits=teacher), ScoredItems())
    shifted = whole(Signals(logits=7 * student - 3), Signals(logits=teacher), ScoredItems())
    assert shifted.item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_is_that_of_trl(name):
    """GKDTrainer's loss, which has no factor T^2. At beta 0 and 1 it is forward and reverse KL."""
    pytest.importorskip("trl")
    from trl.experimental.gkd import GKDTrainer

    student, teacher, _, _ = make_logits(shape=(6, 9), dtype=torch.float32)
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.3}[name]
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=2.0, reduction="sum")
    assert compute(make_loss(name), student, teacher).item() == pytest.approx(4 * theirs.item(), rel=1e-5)


@pytest.mark.parametrize("function", [f for row in DIVERGENCES.values() for f in row.functions.values()])
def test_every_function_is_described(function):
    described = getattr(function, "args", [function])[0]
    assert {"Reference:", "Args:", "Returns:", "Example:"} <= set(described.__doc__.split())


def test_a_divergence_of_ones_own(monkeypatch):
    """A function of log-probabilities and a row."""

    def hellinger(student_log_probs, teacher_log_probs):
        return 0.5 * ((student_log_probs / 2).exp() - (teacher_log_probs / 2).exp()).square().sum()

    row = type(DIVERGENCES["jsd"])(over_distributions(hellinger), "the squared Hellinger distance", "")
    monkeypatch.setitem(DIVERGENCES, "hellinger", row)
    student, teacher, _, ids = make_logits()
    for distribution in EVENTS:
        loss = DivergenceLoss("hellinger", 3.0, distribution)
        assert loss.description == "the squared Hellinger distance"
        assert 0 < compute(loss, student, teacher, ids=ids).item() <= 9 * len(student)
