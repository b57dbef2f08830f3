import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_distill.training.scoring import aligned as aligned_module
from hf_distill.training.scoring.aligned import aligned, is_faster, padded_linear
from tests.conftest import make_model, make_rows
from tests.training.test_split_invariance import one_step_of


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_gradients_are_those_of_a_linear_layer(has_bias, dtype):
    torch.manual_seed(0)
    head = nn.Linear(16, 61, bias=has_bias)
    hidden = torch.randn(2, 5, 16, requires_grad=True)
    computed = []
    for logits in (
        padded_linear(hidden, head.weight, head.bias, dtype),
        F.linear(hidden.to(dtype), head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)),
    ):
        assert logits.shape == (2, 5, 61)
        computed.append([logits, *torch.autograd.grad(logits.float().sin().sum(), [hidden, *head.parameters()])])
    for own, expected in zip(*computed, strict=True):
        assert own.dtype == expected.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)


def test_only_a_plain_linear_layer_is_padded(monkeypatch):
    monkeypatch.setattr(aligned_module, "is_faster", lambda hidden, dtype: True)

    class Own(nn.Linear):
        pass

    own_forward = nn.Linear(4, 7)
    own_forward.forward = lambda hidden: hidden
    for head in (Own(4, 7), nn.Linear(4, 8), own_forward, nn.Identity(), None):
        before = None if head is None else dict(vars(head))
        with aligned(head):
            assert head is None or vars(head) == before
    head = nn.Linear(4, 7)
    with aligned(head):
        assert "forward" in vars(head)
    assert "forward" not in vars(head)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_step_with_a_padded_head(family, monkeypatch, make_trainer):
    """The same loss and gradients, with the head's weight tied to the embeddings."""
    task = {"bert": "mlm", "gpt2": "causal", "t5": "seq2seq"}[family]
    calls = []
    monkeypatch.setattr(aligned_module, "padded_linear", lambda *args: calls.append(args) or padded_linear(*args))

    def step():
        teacher, student = (make_model(family, task, seed=seed) for seed in (0, 1))
        return one_step_of(make_trainer, student, teacher, make_rows(task), ["kl", "task", "cos"])

    (plain_losses, plain), is_padded = step(), bool(calls)
    assert not is_padded
    monkeypatch.setattr(aligned_module, "is_faster", lambda hidden, dtype: True)
    losses, gradient = step()
    assert calls
    assert losses == pytest.approx(plain_losses, rel=1e-6)
    torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_padded_on_a_gpu_in_half_precision():
    head, hidden = nn.Linear(768, 50_257, device="cuda"), torch.randn(64, 768, device="cuda")
    assert not is_faster(hidden, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        expected = head(hidden)
        with aligned(head):
            logits = head(hidden)
    assert logits.stride(0) == 50_264
    torch.testing.assert_close(logits, expected, rtol=0.01, atol=0.01)
