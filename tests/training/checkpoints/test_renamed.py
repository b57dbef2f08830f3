"""Checkpoints whose weights have other names than those of the model."""

import pytest
import torch
from torch import nn

from hf_distill.training.checkpoints.renamed import is_renamed, load_renamed
from tests.conftest import make_model


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_weights_under_earlier_names(tmp_path, shard):
    """`save_pretrained` writes a vision transformer with the names of transformers 4."""
    model, other = make_model("vit", "image", seed=0), make_model("vit", "image", seed=1)
    model.save_pretrained(tmp_path, **({} if shard is None else {"max_shard_size": shard}))
    assert is_renamed(other, str(tmp_path))
    state = torch.get_rng_state()
    load_renamed(other, str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def test_weights_under_their_own_names(tmp_path):
    model = make_model("bert", "classification")
    assert not is_renamed(model, str(tmp_path))
    model.save_pretrained(tmp_path)
    assert not is_renamed(model, str(tmp_path))
    assert not is_renamed(nn.Linear(1, 1), str(tmp_path))
