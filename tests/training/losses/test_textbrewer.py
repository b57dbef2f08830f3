"""The losses over layers and those of TextBrewer on the same tensors, as docs/compare.md describes them."""

from dataclasses import dataclass

import pytest
import torch

from hf_distill.training.losses.attention import AttentionLoss
from hf_distill.training.losses.base import ScoredItems, Signals
from hf_distill.training.losses.batch import visible_to_both
from hf_distill.training.losses.hidden_states import HIDDEN_LOSSES, HiddenLoss

BATCH, HEADS, LENGTH, HEAD_WIDTH = 3, 4, 10, 8
EQUAL, RAGGED = (LENGTH,) * BATCH, (LENGTH, 6, 2)


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("textbrewer.losses")


@dataclass
class Batch:
    """The signals of both models for rows of some lengths."""

    lengths: tuple[int, ...]

    def __post_init__(self):
        generator = torch.Generator().manual_seed(0)
        width = HEADS * HEAD_WIDTH
        self.hidden = [torch.randn(BATCH, LENGTH, width, generator=generator).double() for _ in range(2)]
        queries, keys = (
            [torch.randn(BATCH, HEADS, LENGTH, HEAD_WIDTH, generator=generator).double() for _ in range(2)]
            for _ in range(2)
        )
        self.signals = [
            Signals(hidden_states=hidden, queries=query, keys=key, scaling=HEAD_WIDTH**-0.5)
            for hidden, query, key in zip(self.hidden, queries, keys, strict=True)
        ]
        self.scores = [query @ key.mT * HEAD_WIDTH**-0.5 for query, key in zip(queries, keys, strict=True)]
        self.attended = torch.arange(LENGTH) < torch.tensor(self.lengths).unsqueeze(1)

    def mean(self, loss):
        """Our loss, as the trainer divides it."""
        items = ScoredItems(state_weights=self.attended.double(), visible=visible_to_both(self.attended))
        return (loss(*self.signals, items) / self.attended.sum()).item()


def equal(value):
    return pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("lengths", [EQUAL, RAGGED], ids=["equal", "ragged"])
@pytest.mark.parametrize(("name", "their_name"), [("mse", "hid_mse_loss"), ("cosine", "cos_loss")])
def test_hidden_states_are_the_same(theirs, lengths, name, their_name):
    batch = Batch(lengths)
    own = batch.mean(HiddenLoss(HIDDEN_LOSSES[name]))
    their_loss = getattr(theirs, their_name)
    assert their_loss(*batch.hidden, batch.attended.double()).item() == equal(own)
    if lengths == EQUAL:
        assert their_loss(*batch.hidden).item() == equal(own)


def test_their_mask_multiplies(theirs):
    """So padding must be finite, and without the mask it counts."""
    batch = Batch(RAGGED)
    loss = HiddenLoss(HIDDEN_LOSSES["mse"])
    own = batch.mean(loss)
    assert theirs.hid_mse_loss(*batch.hidden).item() != pytest.approx(own, rel=1e-3)
    for hidden in batch.hidden:
        hidden.masked_fill_(~batch.attended.unsqueeze(-1), float("nan"))
    assert batch.mean(loss) == equal(own)
    assert theirs.hid_mse_loss(*batch.hidden, batch.attended.double()).isnan()


def test_patient_distillation_reads_the_first_position(theirs):
    batch = Batch(RAGGED)
    of_all = batch.mean(HiddenLoss(HIDDEN_LOSSES["normalized_mse"]))
    theirs_of_first = theirs.pkd_loss(*batch.hidden).item()
    assert theirs_of_first != pytest.approx(of_all, rel=1e-3)
    batch.attended = (torch.arange(LENGTH) < 1).expand(BATCH, -1)
    assert theirs_of_first == equal(batch.mean(HiddenLoss(HIDDEN_LOSSES["normalized_mse"])))


def test_attention_is_the_same_without_padding(theirs):
    """The sum over heads is the number of heads times their mean, and is squared."""
    batch = Batch(EQUAL)
    mask = batch.attended.double()
    assert theirs.att_mse_loss(*batch.scores, mask).item() == equal(batch.mean(AttentionLoss()))
    of_sum = theirs.att_mse_sum_loss(*batch.scores, mask).item()
    assert of_sum == equal(HEADS**2 * batch.mean(AttentionLoss(mean_of_heads=True)))


def test_attention_weighs_long_rows_more(theirs):
    """Theirs is a mean over pairs of positions, ours over positions: equal in each row, but not over rows."""
    batch = Batch(RAGGED)
    mask = batch.attended.double()
    their_loss, own = theirs.att_mse_loss(*batch.scores, mask).item(), batch.mean(AttentionLoss())
    assert their_loss != pytest.approx(own, rel=1e-3)
    difference = (batch.scores[0] - batch.scores[1]).square()
    of_row = [difference[row, :, :length, :length].mean() for row, length in enumerate(RAGGED)]
    lengths = torch.tensor(RAGGED)
    assert own == equal((torch.stack(of_row) * lengths).sum().item() / sum(RAGGED))
    assert their_loss == equal((torch.stack(of_row) * lengths**2).sum().item() / lengths.square().sum().item())


def test_attention_without_a_mask_leaves_out_negative_scores(theirs):
    """Theirs takes scores below -0.001 for padding then, which half of all scores are."""
    batch = Batch(EQUAL)
    own, their_loss = batch.mean(AttentionLoss()), theirs.att_mse_loss(*batch.scores).item()
    selected = [scores.where(scores > -1e-3, 0.0) for scores in batch.scores]
    assert their_loss == equal((selected[0] - selected[1]).square().mean().item())
    assert their_loss < 0.6 * own
