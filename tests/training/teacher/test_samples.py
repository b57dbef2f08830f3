"""Tokens that are sampled from the teacher: the draws, the columns that store them, and the training on them."""

import copy
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import concatenate_datasets, load_dataset

from hf_distill import add_teacher_targets, join_teacher_targets
from hf_distill.training.losses.divergences import DIVERGENCES
from hf_distill.training.losses.logits import DivergenceLoss
from hf_distill.training.scoring.top_k import TopK, log_tail
from hf_distill.training.teacher import store as target_store
from hf_distill.training.teacher.columns import BYTES_PER_TOKEN, SAMPLED_COUNTS, SAMPLED_IDS, source_of
from hf_distill.training.teacher.samples import counted, draw, join_samples, targets_of_samples, uniform_numbers
from tests.conftest import HEADS, make_model
from tests.processes import run_on_two_processes
from tests.training.teacher.test_targets import (
    TOKENIZER,
    count_rows_read,
    losses,
    make_dataset,
    make_pair,
    train,
    weights,
)

SAMPLED = {"num_samples": 10}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def probabilities_of(teacher, row, temperature=2.0):
    with torch.no_grad():
        return (teacher(torch.tensor([row["input_ids"]])).logits[0] / temperature).softmax(-1)


def positions_of(row, num_samples):
    """For each token of a stored row, the share of each drawn id."""
    found, drawn = [], 0
    for id_, count in zip(row[SAMPLED_IDS], row[SAMPLED_COUNTS], strict=True):
        if drawn % num_samples == 0:
            found.append({})
        found[-1][id_] = count / num_samples
        drawn += count
    return found


def test_draws_by_hand():
    """A number below the cumulative probability of a token, and not below that of the one before it, draws it."""
    log_probs = torch.tensor([[0.5, 0.0, 0.2, 0.3], [0.0, 1.0, 0.0, 0.0]]).log()
    uniforms = torch.tensor([[0.49, 0.71, 0.0, 0.51, 0.69], [0.0, 0.99, 0.5, 0.2, 0.1]], dtype=torch.float64)
    ids = draw(log_probs, uniforms)
    assert ids.tolist() == [[0, 0, 2, 2, 3], [1] * 5]
    columns, of_rows = counted(ids, [1, 1])
    assert columns[SAMPLED_IDS].flatten().tolist() == [0, 2, 3, 1]
    assert columns[SAMPLED_COUNTS].flatten().tolist() == [2, 2, 1, 5]
    assert of_rows == [3, 1]


def test_what_was_counted_is_joined():
    """On either side of padding; unused slots have the count 0 and an id that was drawn."""
    rng = np.random.default_rng(0)
    log_probs = torch.tensor(rng.normal(size=(7, 20))).log_softmax(-1)
    ids = draw(log_probs, torch.tensor(rng.random((7, 6))))
    tokens = [4, 0, 3]
    columns, of_rows = counted(ids, tokens)
    split = {name: [part.flatten().numpy() for part in values.split(of_rows)] for name, values in columns.items()}
    present = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    joined = join_samples(split[SAMPLED_IDS], split[SAMPLED_COUNTS], present, 6)
    for own, own_ids, counts in zip(ids, joined[SAMPLED_IDS][present], joined[SAMPLED_COUNTS][present], strict=True):
        assert own_ids.repeat_interleave(counts.long()).tolist() == own.tolist()
        assert set(own_ids.tolist()) == set(own.tolist())
    assert (joined[SAMPLED_COUNTS][~present] == 0).all()
    with pytest.raises(ValueError, match="A row has 5 tokens, but its teacher_sampled_counts are for 4 tokens"):
        join_samples(split[SAMPLED_IDS], split[SAMPLED_COUNTS], torch.ones(3, 5, dtype=torch.bool), 6)


@pytest.mark.parametrize("unused", [0, 3])
def test_the_loss_by_hand(unused):
    """`T^2 sum s (log s - log q)` over the drawn tokens; unused slots change neither the value nor the gradient."""
    rng = np.random.default_rng(0)
    student = torch.tensor(rng.normal(size=(1, 6)), requires_grad=True)
    ids = torch.tensor([[1, 4, 5, *[1] * (5 + unused - 3)]])
    counts = torch.tensor([[1.0, 2.0, 2.0, *[0.0] * (5 + unused - 3)]], dtype=torch.float64)
    targets = TopK((counts / 5).log().clamp(min=-1e30), ids, torch.tensor([-1e30], dtype=torch.float64))
    if unused == 0:
        assert torch.equal(targets_of_samples(ids, counts).log_probs, targets.log_probs)
    value = DIVERGENCES["forward_kl"].functions["samples"](student, targets, 1.5)
    value.backward()
    logits = student.detach().numpy()[0] / 1.5
    q = np.exp(logits) / np.exp(logits).sum()
    shares = np.array([0.0, 0.2, 0.0, 0.0, 0.4, 0.4])
    drawn = shares > 0
    assert value.item() == pytest.approx(1.5**2 * (shares[drawn] * np.log(shares[drawn] / q[drawn])).sum())
    np.testing.assert_allclose(student.grad.numpy()[0], 1.5 * (q - shares), atol=1e-12)


def gradient_of_each(student, targets, distribution):
    """The gradient of each position's loss for the student's logits, `[positions, vocabulary]`."""
    logits = student.expand(len(targets.ids), -1).clone().requires_grad_()
    DivergenceLoss("forward_kl", 1.0, distribution).function(logits, targets, 1.0).backward()
    return logits.grad


def test_the_gradient_is_unbiased_and_that_of_the_most_likely_tokens_is_not():
    """The mean over draws is softmax(student) - softmax(teacher), in the tail too."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 50, generator=generator, dtype=torch.float64) * 2
    expected = (student.softmax(-1) - teacher.softmax(-1))[0]
    num_draws, num_samples = 20_000, 8
    log_probs = teacher.log_softmax(-1)
    uniforms = uniform_numbers("ab12", [0], [num_draws], num_samples)
    ids = draw(log_probs.expand(num_draws, -1), uniforms)
    columns, _ = counted(ids, [num_draws])
    flat = [[values.flatten().numpy()] for values in columns.values()]
    joined = join_samples(*flat, torch.ones(1, num_draws, dtype=torch.bool), num_samples)
    targets = targets_of_samples(*(values[0] for values in joined.values()))
    gradients = gradient_of_each(student, targets, "samples")
    standard_error = gradients.std(0) / num_draws**0.5
    deviations = (gradients.mean(0) - expected).abs() / standard_error
    assert deviations.max() < 4.5
    assert 0.3 < deviations.mean() < 1.3  # 0.8 for a normal distribution

    top = log_probs.topk(num_samples).indices
    most_likely = TopK(log_probs.gather(1, top), top, log_tail(log_probs, top).squeeze(1))
    bias = (gradient_of_each(student, most_likely, "top k")[0] - expected).abs()
    assert bias.max() > 20 * standard_error.max()
    assert bias[top[0]].max() < 1e-9  # it is in the tail


def test_draws_of_a_row_by_its_position():
    assert torch.equal(uniform_numbers("ab", [3, 5], [2, 4], 6)[2:], uniform_numbers("ab", [5], [4], 6))
    other_row, other_teacher = uniform_numbers("ab", [4], [4], 6), uniform_numbers("ac", [5], [4], 6)
    for other in (other_row, other_teacher):
        assert not (uniform_numbers("ab", [5], [4], 6) == other).any()


@pytest.mark.parametrize("head", ["causal", "seq2seq"])
def test_the_stored_shares(head):
    """Each position has its draws, from the teacher's distribution at the temperature."""
    teacher, _ = make_pair(head)
    rows = make_dataset(head)
    stored = add_teacher_targets(rows, teacher, TOKENIZER, num_samples=200, temperature=1.5)
    source = source_of(stored)
    assert (source.num_samples, source.top_k, source.temperature) == (200, None, 1.5)
    deviations = []
    for row in stored:
        shares = positions_of(row, 200)
        assert len(shares) == len(row["input_ids"] if head == "causal" else row["labels"])
        assert all(sum(own.values()) == pytest.approx(1) for own in shares)
        if head == "causal":
            for own, p in zip(shares, probabilities_of(teacher, row, 1.5), strict=True):
                of_all = torch.tensor([own.get(id_, 0.0) for id_ in range(61)])
                deviations.append((of_all - p) / (p * (1 - p) / 200).sqrt())
    if head == "causal":
        assert torch.cat(deviations).std().item() == pytest.approx(1, abs=0.1)


def test_bytes_on_disk():
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal")
    stored = add_teacher_targets(rows, teacher, TOKENIZER, num_samples=40, temperature=8.0)
    targets = stored.select_columns([SAMPLED_IDS, SAMPLED_COUNTS])
    assert [feature.feature.dtype for feature in targets.features.values()] == ["uint16", "uint8"]
    num_bytes = sum(chunk.flatten().nbytes for column in targets.data.columns for chunk in column.chunks)
    assert num_bytes == 3 * sum(map(len, stored[SAMPLED_IDS])) < BYTES_PER_TOKEN * sum(map(len, rows["input_ids"]))
    assert BYTES_PER_TOKEN >= 3 * 40  # if every draw is another token
    assert BYTES_PER_TOKEN >= 5 * 24
    many = add_teacher_targets(rows, teacher, TOKENIZER, num_samples=256)
    assert many.features[SAMPLED_COUNTS].feature.dtype == "uint16"


def test_batch_size_and_processes_do_not_change_the_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(target_store, "ROWS_PER_SHARD", 16)
    teacher = make_pair("causal")[0].double()  # rounding in float32 might move a draw to another token
    rows = make_dataset("causal", num_rows=14)
    stored = [
        add_teacher_targets(rows, teacher, TOKENIZER, batch_size=size, output_dir=tmp_path / f"{size}", **SAMPLED)
        for size in (1, 3, 64)
    ]
    assert stored[0][:] == stored[1][:] == stored[2][:]
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from tests.training.teacher.test_samples import *\n"
        "target_store.ROWS_PER_SHARD = 16\n"
        "rows, teacher = make_dataset('causal', num_rows=14), make_pair('causal')[0].double()\n"
        "add_teacher_targets(rows, teacher, TOKENIZER, output_dir=sys.argv[1], **SAMPLED)\n"
    )
    run = run_on_two_processes([script, tmp_path / "two"], env={"ACCELERATE_USE_CPU": "true"})
    assert run.returncode == 0, run.stderr
    two = add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "two", **SAMPLED)
    assert two[:] == stored[0][:]


def test_equal_rows_have_draws_of_their_own():
    teacher, _ = make_pair("causal")
    row = make_dataset("causal").select([3])
    stored = add_teacher_targets(concatenate_datasets([row] * 50), teacher, TOKENIZER, **SAMPLED)
    assert len({str(ids) for ids in stored[SAMPLED_IDS]}) == 50
    mean = np.zeros(61)
    for own in stored:
        for id_, share in positions_of(own, 10)[0].items():
            mean[id_] += share / 50
    p = probabilities_of(teacher, stored[0])[0].numpy()
    assert (np.abs(mean - p) / np.sqrt(p * (1 - p) / 500))[p > 0.01].max() < 4.5


def test_an_interrupted_call_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(target_store, "ROWS_PER_SHARD", 16)
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal", num_rows=14)
    whole = add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "whole", **SAMPLED)
    for index in (1, 3):
        (tmp_path / "whole" / f"shard-{index:05}-of-00004.arrow").unlink()
    read = count_rows_read(monkeypatch)
    resumed = add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "whole", **SAMPLED)
    assert read == [4, 2]
    assert resumed[:] == whole[:]
    with pytest.raises(ValueError, match=r"targets of another options .*'num_samples': 10.*choose another output_dir"):
        add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "whole", num_samples=11)


@pytest.mark.parametrize("hidden_states", [False, True])
@pytest.mark.parametrize("head", ["causal", "seq2seq"])
def test_a_training(make_trainer, head, hidden_states):
    """With many draws it is nearly that of a live teacher. The value has less of the teacher's entropy."""
    teacher, student = make_pair(head)
    rows = make_dataset(head)
    stored = add_teacher_targets(rows, teacher, TOKENIZER, num_samples=20_000, hidden_states=hidden_states)
    options = {"alpha_cos": 1.0 if hidden_states else 0.0}
    live, ours = (
        train(make_trainer, student, given, data, eval_rows=data, **options)
        for given, data in ((teacher, rows), (None, stored))
    )
    moved = (weights(live) - torch.cat([p.detach().flatten() for p in student.parameters()])).norm()
    assert (weights(ours) - weights(live)).norm() < 0.05 * moved
    assert losses(ours)["loss_kl"] == pytest.approx(losses(live)["loss_kl"], rel=0.05)
    assert ours.evaluate()["eval_loss_kl"] == pytest.approx(live.evaluate()["eval_loss_kl"], rel=0.05)


def test_the_loss_of_a_trainer_by_hand(make_trainer):
    """The mean over the scored positions of `T^2 sum s (log s - log q)`."""
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    expected = []
    for row in stored:
        for shares, q in zip(positions_of(row, 10), probabilities_of(student, row), strict=True):
            expected.append(4 * sum(share * np.log(share / q[id_].item()) for id_, share in shares.items()))
    trainer = make_trainer(student, None, stored, stored, alpha_cos=0.0, kl_positions="attended")
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_step_in_one_batch_or_in_several(make_trainer):
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    whole, split = (
        train(make_trainer, student, None, stored, alpha_cos=0.0, max_steps=1, **options)
        for options in (
            {"per_device_train_batch_size": 16},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        )
    )
    torch.testing.assert_close(weights(split), weights(whole), rtol=0, atol=1e-6)


def test_a_stream(make_trainer, tmp_path):
    """From the rows in memory, and from files."""
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal", num_rows=24), teacher, TOKENIZER, **SAMPLED)
    stored.to_parquet(tmp_path / "rows.parquet")
    streams = [
        stored.to_iterable_dataset(),
        load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train", streaming=True),
    ]
    expected = train(make_trainer, student, None, stored, alpha_cos=0.0)
    for stream in streams:
        ours = train(make_trainer, student, None, stream, alpha_cos=0.0)
        assert losses(ours) == pytest.approx(losses(expected), rel=1e-6)
        torch.testing.assert_close(weights(ours), weights(expected), rtol=0, atol=1e-6)


def test_a_resumed_training(make_trainer):
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    options = {"alpha_cos": 0.0, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    options |= {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "optim": "sgd"}
    whole = train(make_trainer, student, None, stored, **options)
    checkpoint = Path(whole.args.output_dir) / "checkpoint-3"
    resumed = make_trainer(copy.deepcopy(student), None, stored, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(resumed), weights(whole))


def test_the_model_card(make_trainer, tmp_path):
    make_pair("causal")[0].save_pretrained(tmp_path / "my-teacher")
    teacher, student = HEADS["causal"].from_pretrained(tmp_path / "my-teacher"), make_pair("causal")[1]
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    trainer = train(make_trainer, student, None, stored, alpha_cos=0.0, max_steps=1)
    trainer.save_model()
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert "softened outputs of teacher and student, from sampled tokens of the teacher" in card
    assert "@article{anshumann2025sparse" in card
    assert "@article{hinton" in card
    assert "sampled tokens per position: 10" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            (
                {"divergence": name},
                rf"divergence='{name}' does not work with .*num_samples=10\).*only divergence='forward_kl'",
            )
            for name in DIVERGENCES
            if name != "forward_kl"
        ),
        ({"standardize_logits": True}, r"standardize_logits=True does not work with .*num_samples=10"),
        ({"temperature": 3.0}, r"temperature=3\.0, but the targets were stored at temperature 2\.0"),
        ({"temperature": "linear:4->1"}, "does not work with stored teacher targets of a language model"),
    ],
)
def test_trainings_that_do_not_fit(make_trainer, arguments, message):
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    with pytest.raises(ValueError, match=message):
        make_trainer(student, None, stored, alpha_cos=0.0, **arguments)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("causal", {"top_k": 5}, r"\{'top_k': 5\} would have no effect with num_samples=10.*leave out top_k, or num_s"),
        ("causal", {"min_mass": 0.0}, r"\{'min_mass': 0.0\} would have no effect with num_samples=10"),
        ("causal", {"num_samples": 0}, "num_samples=0 should be a whole number from 1 to 65535"),
        ("causal", {"num_samples": 2**16}, "num_samples=65536 should be"),
        ("causal", {"num_samples": 8.0}, "num_samples=8.0 should be"),
        ("classification", {}, r"\{'num_samples': 10\} would have no effect for a BertForSequenceClassification"),
    ],
)
def test_options_that_do_not_fit(head, options, message):
    teacher, _ = make_pair(head)
    with pytest.raises(ValueError, match=message):
        add_teacher_targets(make_dataset(head), teacher, TOKENIZER, **{**SAMPLED, **options})


def test_a_teacher_that_overflows(tmp_path):
    teacher, _ = make_pair("causal")
    with torch.no_grad():
        teacher.transformer.ln_f.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="logits that are not finite in float32: choose another dtype"):
        add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    assert not list(tmp_path.rglob("shard*"))


def test_rows_that_were_cut_afterwards(make_trainer):
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    cut = stored.map(lambda row: {name: row[name][:5] for name in ("input_ids", "attention_mask", "labels")})
    trainer = make_trainer(student, None, cut, alpha_cos=0.0, max_steps=1)
    with pytest.raises(ValueError, match=r"A row has 5 tokens, but its .*do not tokenise, truncate, pack or mask"):
        trainer.train()


def test_a_student_with_another_vocabulary(make_trainer):
    teacher, _ = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **SAMPLED)
    student = make_model("gpt2", "causal", vocab_size=64)
    with pytest.raises(ValueError, match="vocabulary has 64 entries, but the stored targets have 61"):
        make_trainer(student, None, stored, alpha_cos=0.0)


def test_sampled_targets_are_not_joined():
    rows = make_dataset("causal")
    of_each = [
        add_teacher_targets(rows, make_model("gpt2", "causal", seed=seed), TOKENIZER, **SAMPLED) for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match=r"datasets\[0\] has 10 sampled tokens of .*cannot be joined"):
        join_teacher_targets(of_each)
