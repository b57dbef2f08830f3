"""How exact and how large the stored targets of language models are."""

import datasets
import numpy as np
import pytest
import torch
from datasets import List, Value
from hypothesis import given
from hypothesis import strategies as st

from hf_distill import add_teacher_targets
from hf_distill.training.losses.divergences import DIVERGENCES
from hf_distill.training.scoring.top_k import TopK, log_tail
from hf_distill.training.teacher.columns import (
    BYTES_PER_TOKEN,
    LEAST_LOG_PROB,
    LOG_TAIL,
    TOP_IDS,
    TOP_LOG_PROBS,
    default_top_k,
    id_dtype,
    join,
    split,
)
from tests.training.teacher.test_targets import TOKENIZER, losses, make_dataset, make_pair, train, weights

logits = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rounded(log_probs, ids):
    """The top k tokens of `[positions, vocabulary]` log-probabilities, through the stored columns."""
    columns = {TOP_LOG_PROBS: log_probs.gather(1, ids), TOP_IDS: ids, LOG_TAIL: log_tail(log_probs, ids)}
    present = torch.ones(1, len(log_probs), dtype=torch.bool)
    read = {}
    for name, values in columns.items():
        dtype = id_dtype(log_probs.shape[1]) if name == TOP_IDS else "float16"
        rows = split(values.clamp(min=LEAST_LOG_PROB), [len(log_probs)], dtype)
        read[name] = join(name, rows, present, values.shape[1])[0]
    return TopK.of_rounded(read[TOP_LOG_PROBS], read[TOP_IDS], read[LOG_TAIL])


def events_of(targets):
    return torch.cat([targets.log_probs, targets.log_tail.unsqueeze(1)], dim=1).double()


@given(logits, st.integers(1, 39))
def test_probabilities_after_rounding(logits, k):
    """They sum to 1, each is exact to 0.001, and zeros stay zeros."""
    log_probs = torch.tensor([logits]).log_softmax(-1)
    ids = log_probs.topk(min(k, len(logits))).indices
    targets = rounded(log_probs, ids)
    exact = torch.cat([log_probs.gather(1, ids), log_tail(log_probs, ids)], dim=1).double().exp()
    assert torch.equal(targets.ids, ids)
    assert events_of(targets).exp().sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(events_of(targets).exp(), exact, rtol=0, atol=1e-3)
    if k >= len(logits):
        assert targets.log_tail.exp().item() == 0


@pytest.mark.parametrize("name", [name for name, row in DIVERGENCES.items() if "top k" in row.functions])
@given(teacher=logits, student=logits, k=st.integers(1, 39))
def test_divergences_after_rounding(name, teacher, student, k):
    """A divergence is finite and not negative, also for a student that equals the teacher."""
    size = min(len(teacher), len(student))
    teacher_logits = torch.tensor([teacher[:size]])
    log_probs = teacher_logits.log_softmax(-1)
    targets = rounded(log_probs, log_probs.topk(min(k, size)).indices)
    row = DIVERGENCES[name]
    parameters = dict.fromkeys(row.parameters, 0.5)
    for logits in (teacher_logits, torch.tensor([student[:size]])):
        logits = logits.clone().requires_grad_()
        value = row.functions["top k"](logits, targets, 1.0, **parameters)
        value.backward()
        assert -2e-6 <= value.item() < 1e6
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "top_k"), [(61, "uint16", 29), (65536, "uint16", 29), (65537, "int32", 19)]
)
def test_sizes_of_vocabularies(vocab_size, dtype, top_k):
    assert id_dtype(vocab_size) == dtype
    assert default_top_k(vocab_size) == top_k
    assert default_top_k(7) == 7
    width = np.dtype(dtype).itemsize + 2
    assert top_k * width + 2 <= BYTES_PER_TOKEN < (top_k + 1) * width + 2


def test_the_last_id_of_a_vocabulary():
    for vocab_size in (65536, 65537):
        ids = torch.tensor([[vocab_size - 1, 0]])
        (row,) = split(ids, [1], id_dtype(vocab_size))
        assert torch.equal(join(TOP_IDS, [row], torch.ones(1, 1, dtype=torch.bool), 2)[0], ids)


def test_bytes_on_disk():
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal")
    stored = add_teacher_targets(rows, teacher, TOKENIZER)
    targets = stored.select_columns([TOP_LOG_PROBS, TOP_IDS, LOG_TAIL])
    assert {name: feature.feature.dtype for name, feature in targets.features.items()} == {
        TOP_LOG_PROBS: "float16",
        TOP_IDS: "uint16",
        LOG_TAIL: "float16",
    }
    num_tokens = sum(map(len, rows["input_ids"]))
    values = sum(chunk.flatten().nbytes for column in targets.data.columns for chunk in column.chunks)
    assert values == 118 * num_tokens <= BYTES_PER_TOKEN * num_tokens


def test_columns_of_an_earlier_version(make_trainer):
    """Log-probabilities in float32 and ids in int32 are read, and are as exact as a live teacher."""
    teacher, student = make_pair("causal")
    rows = make_dataset("causal")
    stored = add_teacher_targets(rows, teacher, TOKENIZER, top_k=61)

    def exact(row):
        with torch.no_grad():
            top = (teacher(torch.tensor([row["input_ids"]])).logits[0] / 2).log_softmax(-1).topk(61)
        tail = np.full(len(row["input_ids"]), -1e30, dtype=np.float32)
        return {TOP_LOG_PROBS: top.values.flatten().numpy(), TOP_IDS: top.indices.flatten().numpy(), LOG_TAIL: tail}

    features = stored.features.copy()
    features |= {TOP_LOG_PROBS: List(Value("float32")), TOP_IDS: List(Value("int32")), LOG_TAIL: List(Value("float32"))}
    earlier = stored.map(exact, features=features)
    live, ours = (
        train(make_trainer, student, given, data, alpha_cos=0.0) for given, data in ((teacher, rows), (None, earlier))
    )
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=2e-6)
    assert losses(ours) == pytest.approx(losses(live), rel=1e-5)


def test_tokens_that_the_teacher_never_gives(make_trainer):
    """Masked logits are probabilities of 0, not numbers that float16 cannot hold."""
    teacher, student = make_pair("causal")
    rows = make_dataset("causal")
    masked = torch.zeros(61)
    masked[40:] = float("-inf")
    teacher.lm_head.register_forward_hook(lambda module, inputs, output: output + masked)
    stored = add_teacher_targets(rows, teacher, TOKENIZER, top_k=61)
    for row in stored:
        log_probs = torch.tensor(row[TOP_LOG_PROBS]).reshape(-1, 61)
        assert (log_probs[:, 40:] == LEAST_LOG_PROB).all()
        assert (log_probs[:, :40] > -100).all()
    assert 0 < make_trainer(student, None, stored, stored, alpha_cos=0.0).evaluate()["eval_loss_kl"] < 10


def test_shards_of_another_precision_are_not_continued(tmp_path):
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal")
    add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "targets")
    manifest = tmp_path / "targets" / "targets.json"
    manifest.write_text(manifest.read_text().replace("float16", "float32"))
    with pytest.raises(ValueError, match=r"targets of another options .*float32.*choose another output_dir"):
        add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "targets")
