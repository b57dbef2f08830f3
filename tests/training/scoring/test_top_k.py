"""The total probability of the tokens outside the top k."""

import torch

from hf_distill.training.scoring.top_k import log_tail


def test_log_tail():
    log_probs = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    ids = log_probs.topk(3).indices
    tail = log_tail(log_probs, ids)
    torch.testing.assert_close(tail.exp(), 1 - log_probs.exp().gather(1, ids).sum(1, keepdim=True))
    assert log_tail(log_probs, log_probs.topk(7).indices).tolist() == [[-1e30]] * 5  # no other token is left
    assert not log_tail(log_probs.float(), ids).isnan().any()
