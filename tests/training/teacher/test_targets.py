"""Stored teacher outputs give the same training as a live teacher."""

import copy
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState  # noqa: F401 (for the script below)
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, default_data_collator

from hf_distill import add_teacher_targets
from hf_distill.progress import lines
from hf_distill.training.teacher import mass as target_mass
from hf_distill.training.teacher import reader as target_reader
from hf_distill.training.teacher import shards
from hf_distill.training.teacher import store as target_store
from hf_distill.training.teacher.columns import source_of
from tests.conftest import FAMILY_OF_HEAD, HEADS, collate, make_model, make_rows, make_text_tokenizer, make_texts
from tests.processes import run_on_two_processes, run_python

TOKENIZER = make_text_tokenizer()
PER_TEXT = ["classification", "multi_label", "regression"]
TEXT_HEADS = [*PER_TEXT, "token_classification", "question_answering", "multiple_choice", "causal", "seq2seq"]
ALL = {"top_k": 61}
"""Of language models, every token."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "teacher_targets"


def make_pair(head, seed=3):
    family = FAMILY_OF_HEAD.get(head, "bert")
    teacher = make_model(family, head)
    return teacher, make_model(family, head, seed=seed, num_layers=2)


def make_dataset(head, num_rows=16, seed=0):
    rows = make_rows(head, num_rows, seed)
    if head == "seq2seq":
        rows = rows[1:]  # DataCollatorForSeq2Seq does not take an empty target
    rows = [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]
    return Dataset.from_list(rows)


def options_of(head):
    return ALL if head in ("causal", "seq2seq") else {}


def losses(trainer):
    return {name: value for name, value in trainer.state.log_history[0].items() if "loss" in name}


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def train(make_trainer, student, teacher, rows, **options):
    """A trainer after six steps of four rows each."""
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "optim": "sgd"}
    trainer = make_trainer(copy.deepcopy(student), teacher, rows, **{**defaults, **options})
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("head", "hidden_states"), [*((head, stored) for head in TEXT_HEADS for stored in (True, False)), ("image", False)]
)
def test_the_same_weights_as_with_the_teacher_at_hand(make_trainer, head, hidden_states):
    """Losses are the same to the stored precision, although rows are stored in other batches than in training."""
    teacher, student = make_pair(head)
    rows = make_dataset(head)
    tokenizer = None if head == "image" else TOKENIZER
    stored = add_teacher_targets(
        rows, teacher, tokenizer, batch_size=5, hidden_states=hidden_states, **options_of(head)
    )
    options = {"alpha_cos": 1.0 if hidden_states else 0.0}
    if head == "image":
        options["data_collator"] = default_data_collator
    live, ours = (
        train(make_trainer, student, given, dataset, eval_rows=dataset, **options)
        for given, dataset in ((teacher, rows), (None, stored))
    )
    # Hidden states and log-probabilities are stored in half precision, everything else in float32.
    is_language_model = head in ("causal", "seq2seq")
    atol = 1e-4 if hidden_states else 2e-5 if is_language_model else 2e-6
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=atol)
    rel = 1e-3 if hidden_states else 2e-4 if is_language_model else 1e-5
    close = {"rel": rel, "abs": 2e-7}  # a small divergence is what larger numbers differ by
    assert losses(ours) == pytest.approx(losses(live), **close)
    evaluated = [{k: v for k, v in trainer.evaluate().items() if "loss" in k} for trainer in (ours, live)]
    assert evaluated[0] == pytest.approx(evaluated[1], **close)
    assert len(evaluated[0]) == len(ours.losses) + 1


@pytest.mark.parametrize("head", ["classification", "token_classification", "causal", "question_answering"])
def test_a_prediction_is_an_evaluation(make_trainer, head):
    """Rows of different lengths, with targets for each token."""
    teacher, student = make_pair(head)
    hidden_states = head != "question_answering"
    stored = add_teacher_targets(
        make_dataset(head), teacher, TOKENIZER, hidden_states=hidden_states, **options_of(head)
    )
    options = {"alpha_cos": 1.0 if hidden_states else 0.0, "per_device_eval_batch_size": 5}
    trainer = make_trainer(student, None, stored, stored, **options)
    evaluated, predicted = trainer.evaluate(), trainer.predict(stored)
    for name in ("loss", *(f"loss_{loss}" for loss in trainer.losses)):
        assert predicted.metrics[f"test_{name}"] == pytest.approx(evaluated[f"eval_{name}"], rel=1e-6)


class GivesBatches(torch.utils.data.Dataset):
    """`__getitems__` gives a batch of columns, not a list of rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, indices):
        return self.rows[indices]


def test_a_data_set_that_gives_batches(make_trainer):
    teacher, student = make_pair("token_classification")
    stored = add_teacher_targets(make_dataset("token_classification"), teacher, TOKENIZER)

    def collate_columns(columns):
        names = ("input_ids", "attention_mask", "labels")
        return collate([dict(zip(names, row, strict=True)) for row in zip(*(columns[n] for n in names), strict=True)])

    of_rows = make_trainer(student, None, stored, alpha_cos=0.0).evaluate(stored)
    options = {"alpha_cos": 0.0, "data_collator": collate_columns, "remove_unused_columns": False}
    of_batches = make_trainer(student, None, stored, **options).evaluate(GivesBatches(stored))
    assert of_batches["eval_loss_kl"] == pytest.approx(of_rows["eval_loss_kl"], rel=1e-6)


def test_rows_by_hand():
    """The logits of a row are those of the teacher for that row alone, in the order of the rows."""
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification", num_rows=40)
    stored = add_teacher_targets(rows, teacher, TOKENIZER, hidden_states=True, batch_size=7)
    for row in stored:
        alone = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output = teacher(**alone, output_hidden_states=True)
        assert row["teacher_logits"] == pytest.approx(output.logits[0].tolist(), abs=1e-5)
        states = torch.tensor(row["teacher_hidden_states"]).reshape(output.hidden_states[-1][0].shape)
        torch.testing.assert_close(states, output.hidden_states[-1][0], rtol=1e-3, atol=1e-3)
    assert not teacher.training
    assert teacher.classifier.weight.requires_grad


def test_the_most_likely_tokens_by_hand():
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal", num_rows=6)
    stored = add_teacher_targets(rows, teacher, TOKENIZER, top_k=3, temperature=1.5, batch_size=4, min_mass=0.0)
    for row in stored:
        with torch.no_grad():
            probs = (teacher(torch.tensor([row["input_ids"]])).logits[0] / 1.5).softmax(-1)
        ids = torch.tensor(row["teacher_top_ids"]).reshape(-1, 3)
        close = {"rtol": 2**-11, "atol": 1e-6}  # half precision, of the logarithms
        torch.testing.assert_close(
            torch.tensor(row["teacher_top_log_probs"]).reshape(-1, 3), probs.gather(1, ids).log(), **close
        )
        assert set(ids[0].tolist()) == set(probs[0].topk(3).indices.tolist())
        left = 1 - probs.gather(1, ids).sum(1)
        torch.testing.assert_close(torch.tensor(row["teacher_log_tail"]), left.log(), **close)


@pytest.fixture
def mass_logs(monkeypatch):
    seen = []
    for level in ("warning", "info"):
        monkeypatch.setattr(target_mass.logger, level, lambda message, level=level: seen.append((level, message)))
    return seen


def mass_by_hand(teacher, rows, top_k, temperature):
    """Probability of the top k tokens, averaged over all tokens."""
    held = []
    for row in rows:
        with torch.no_grad():
            probs = (teacher(torch.tensor([row["input_ids"]])).logits[0] / temperature).softmax(-1)
        held += probs.sort(descending=True).values[:, :top_k].sum(1).tolist()
    return sum(held) / len(held), len(held)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_what_the_most_likely_tokens_hold(mass_logs, temperature):
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal", num_rows=8)
    mass, num_tokens = mass_by_hand(teacher, rows, 5, temperature)
    options = {"top_k": 5, "temperature": temperature}
    for _ in range(2):  # a repeated call, which does not run the teacher, reports it too
        add_teacher_targets(rows, teacher, TOKENIZER, **options, min_mass=mass - 2e-4)
    expected = f"The 5 most likely tokens hold {mass:.0%} of the teacher's probability at temperature "
    assert len(mass_logs) == 2
    for level, message in mass_logs:
        assert level == "warning"
        assert (
            expected
            + f"{temperature:g}, as a mean over {num_tokens} tokens. The student learns only the total of the rest"
            in message
        )
    with pytest.raises(ValueError, match=f"hold {mass:.0%} of .* less than min_mass=.*raise top_k, lower temperature"):
        add_teacher_targets(rows, teacher, TOKENIZER, **options, min_mass=mass + 2e-4)


def test_most_likely_tokens_that_hold_little(cache):
    """By default this is an error after the first shard."""
    teacher, _ = make_pair("causal")
    rows = make_dataset("causal", num_rows=600)
    assert mass_by_hand(teacher, rows.select(range(256)), 3, 8.0)[0] == pytest.approx(0.06, abs=0.005)
    with pytest.raises(ValueError, match=r"The 3 most likely tokens hold 6% .*less than min_mass=0.5"):
        add_teacher_targets(rows, teacher, TOKENIZER, top_k=3, temperature=8.0)
    assert not list(cache.rglob("shard*"))


def test_most_likely_tokens_that_hold_all(mass_logs):
    teacher, _ = make_pair("causal")
    add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER, **ALL)
    ((level, message),) = mass_logs
    assert level == "info"
    assert "The 61 most likely tokens hold 100%" in message


def test_fewer_tokens_give_a_smaller_divergence(make_trainer):
    """Classes outside the top k count as one class, and cannot differ from each other."""
    teacher, student = make_pair("causal")
    rows = make_dataset("causal")
    losses_of = []
    for top_k in (1, 4, 16, 61):
        stored = add_teacher_targets(rows, teacher, TOKENIZER, top_k=top_k, min_mass=0.0)
        losses_of.append(make_trainer(student, None, stored, stored, alpha_cos=0.0).evaluate()["eval_loss_kl"])
    live = make_trainer(student, teacher, rows, rows, alpha_cos=0.0).evaluate()["eval_loss_kl"]
    assert losses_of == sorted(losses_of)
    assert losses_of[0] < 0.9 * live
    assert losses_of[-1] == pytest.approx(live, rel=2e-4)


@pytest.mark.parametrize("length", [None, 24])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_whichever_side_is_padded(make_trainer, padding_side, length):
    """Targets are padded by the collator, to the longest row or further, for models that ignore padding."""
    teacher, student = make_model("llama", "causal"), make_model("llama", "causal", seed=3, num_layers=2)
    tokenizer = make_text_tokenizer()
    tokenizer.padding_side = padding_side
    padding = "max_length" if length else True
    collator = DataCollatorForTokenClassification(tokenizer, padding=padding, max_length=length)
    rows = make_dataset("causal")
    stored = add_teacher_targets(rows, teacher, TOKENIZER, hidden_states=True, top_k=61)
    live, ours = (
        train(make_trainer, student, given, dataset, data_collator=collator, kl_positions="attended")
        for given, dataset in ((teacher, rows), (None, stored))
    )
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=1e-4)


def test_rows_that_are_padded_already(make_trainer):
    teacher, student = make_pair("token_classification")
    padded = collate(make_rows("token_classification"), length=24)
    rows = Dataset.from_dict({name: values.tolist() for name, values in padded.items()})
    stored = add_teacher_targets(rows, teacher, TOKENIZER, hidden_states=True)
    assert len(stored[0]["teacher_logits"]) == 5 * sum(rows[0]["attention_mask"])
    live, ours = (train(make_trainer, student, given, data) for given, data in ((teacher, rows), (None, stored)))
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=1e-4)


def test_targets_stay_with_their_rows(tmp_path):
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification", num_rows=30).add_column("number", list(range(30)))
    stored = add_teacher_targets(rows, teacher, TOKENIZER)
    logits = stored["teacher_logits"][:]
    changed = stored.shuffle(seed=1).filter(lambda row: row["number"] % 3).map(lambda row: {"twice": 2 * row["number"]})
    changed = concatenate_datasets([changed, stored.select([0, 3])])
    changed.save_to_disk(tmp_path / "saved")
    changed.to_parquet(tmp_path / "saved.parquet")
    for loaded in (changed, load_from_disk(tmp_path / "saved"), Dataset.from_parquet(str(tmp_path / "saved.parquet"))):
        assert len(loaded) == 22
        assert all(row["teacher_logits"] == logits[row["number"]] for row in loaded)
        assert source_of(loaded) == source_of(stored)


def test_rows_of_a_shuffled_data_set():
    """A dataset whose order differs from the order of its storage."""
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification", num_rows=30)
    stored = add_teacher_targets(rows, teacher, TOKENIZER)
    by_row = {str(row["input_ids"]): row["teacher_logits"] for row in stored}
    for row in add_teacher_targets(rows.shuffle(seed=0), teacher, TOKENIZER):
        assert row["teacher_logits"] == pytest.approx(by_row[str(row["input_ids"])], abs=1e-5)


def test_rows_of_two_teachers_do_not_mix():
    rows = make_dataset("classification")
    one, other = (add_teacher_targets(rows, make_model("bert", "classification", seed=s), TOKENIZER) for s in (0, 1))
    with pytest.raises(ValueError, match="teacher_source"):
        concatenate_datasets([one, other])


def test_data_that_reads_as_it_was_written(make_trainer, tmp_path):
    """A student learns from a file written with another person's teacher."""
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    stored.to_parquet(tmp_path / "rows.parquet")
    loaded = Dataset.from_parquet(str(tmp_path / "rows.parquet"))
    runs = [train(make_trainer, student, None, rows, alpha_cos=0.0) for rows in (stored, loaded)]
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_rows_of_another_format(make_trainer):
    """Rows formatted as tensors, or by a function when they are read."""
    teacher, student = make_pair("classification")
    rows = make_dataset("classification")
    expected = weights(train(make_trainer, student, teacher, rows, alpha_cos=0.0))
    tensors = add_teacher_targets(rows.with_format("torch"), teacher, TOKENIZER)
    assert isinstance(tensors[0]["teacher_logits"], torch.Tensor)
    text = Dataset.from_dict({"ids": rows["input_ids"][:], "labels": rows["labels"][:]})

    def make(batch):
        made = {"input_ids": batch["ids"], "attention_mask": [[1] * len(ids) for ids in batch["ids"]]}
        return {**made, **{name: values for name, values in batch.items() if name != "ids"}}

    computed = add_teacher_targets(text.with_transform(make), teacher, TOKENIZER)
    collator = DataCollatorWithPadding(TOKENIZER)
    for stored in (tensors, computed):
        options = {"data_collator": collator, "remove_unused_columns": stored is tensors}
        ours = weights(train(make_trainer, student, None, stored, alpha_cos=0.0, **options))
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_a_stream_of_rows_that_have_targets(make_trainer, tmp_path):
    """From memory, and from files."""
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal", num_rows=24), teacher, TOKENIZER, hidden_states=True)
    stored.to_parquet(tmp_path / "rows.parquet")
    files = {"data_files": str(tmp_path / "rows.parquet"), "split": "train"}
    of_rows = train(make_trainer, student, None, stored)
    for stream in (stored.to_iterable_dataset(num_shards=1), load_dataset("parquet", **files, streaming=True)):
        of_stream = train(make_trainer, student, None, stream)
        assert losses(of_stream) == pytest.approx(losses(of_rows), rel=1e-6)
        torch.testing.assert_close(weights(of_stream), weights(of_rows), rtol=0, atol=1e-6)


def test_a_mapped_stream(make_trainer):
    """`map` drops the features of a stream, and with them the record of the teacher, unless it gets them."""
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER)
    stream = stored.to_iterable_dataset()
    mapped = stream.map(lambda row: row)
    for given in ({"rows": mapped}, {"rows": stored, "eval_rows": mapped}):
        name = "eval_dataset" if len(given) == 2 else "train_dataset"
        with pytest.raises(ValueError, match=rf"{name} is a stream .*map dropped the record.*features=stream.features"):
            make_trainer(student, None, **given, alpha_cos=0.0, max_steps=1)
    make_trainer(student, None, mapped, alpha_cos=0.0, alpha_kl=0.0, max_steps=1)
    kept = train(make_trainer, student, None, stream.map(lambda row: row, features=stream.features), alpha_cos=0.0)
    of_rows = train(make_trainer, student, None, stored, alpha_cos=0.0)
    torch.testing.assert_close(weights(kept), weights(of_rows), rtol=0, atol=1e-6)


def test_a_dict_of_data_sets(make_trainer, tmp_path):
    teacher, student = make_pair("classification")
    splits = DatasetDict(train=make_dataset("classification"), test=make_dataset("classification", seed=1))
    stored = add_teacher_targets(splits, teacher, TOKENIZER, output_dir=tmp_path / "targets")
    assert sorted(path.name for path in (tmp_path / "targets").iterdir()) == ["test", "train"]
    trainer = make_trainer(student, None, stored["train"], stored["test"], alpha_cos=0.0)
    assert trainer.evaluate()["eval_loss_kl"] > 0


@pytest.mark.parametrize("family", ["distilbert", "gpt2"])
def test_a_teacher_of_another_family_with_another_tokenizer(make_trainer, family):
    """The teacher reads the text, and the student its own tokens."""
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    swapped = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    teacher = make_model(family, "classification", vocab_size=70, **swapped)
    student = make_model("bert", "classification", num_layers=2, **names)
    texts = make_texts(20)
    text = Dataset.from_dict({"text": texts, "labels": [0, 1] * 10})
    other = make_text_tokenizer()
    other.add_tokens(["another"])
    stored = add_teacher_targets(text, teacher, other, text_columns="text", batch_size=3)
    with torch.no_grad():
        expected = torch.cat([teacher(**other(one, return_tensors="pt")).logits for one in texts])
    torch.testing.assert_close(torch.tensor(stored["teacher_logits"][:]), expected, rtol=0, atol=1e-5)

    rows = stored.map(lambda row: TOKENIZER(row["text"]), remove_columns="text")
    trainer = make_trainer(student, None, rows, rows, alpha_cos=0.0, data_collator=DataCollatorWithPadding(TOKENIZER))
    kl = torch.nn.functional.kl_div(
        torch.cat([student(**TOKENIZER(one, return_tensors="pt")).logits for one in texts]).div(2).log_softmax(-1),
        expected[:, [1, 0]].div(2).log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(4 * kl.item() / 20, rel=1e-4)


def count_rows_read(monkeypatch):
    read = []
    of_reader = target_reader.TargetReader.__call__

    def counted(self, rows, first_row, done):
        read.append(len(rows["input_ids"]))
        return of_reader(self, rows, first_row, done)

    monkeypatch.setattr(target_reader.TargetReader, "__call__", counted)
    return read


def test_a_repeated_call_is_free(monkeypatch):
    teacher, _ = make_pair("classification")
    read = count_rows_read(monkeypatch)
    first, second = (add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER) for _ in range(2))
    assert read == [16]
    assert first[:] == second[:]
    assert first._fingerprint == second._fingerprint  # later steps then also find their cache
    # Another teacher, other tokens, other rows and other options are other targets.
    add_teacher_targets(make_dataset("classification"), make_model("bert", "classification", seed=9), TOKENIZER)
    add_teacher_targets(make_dataset("classification", seed=9), teacher, TOKENIZER)
    add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER, dtype="bfloat16")
    add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER, hidden_states=True)
    assert read == [16] * 5


def test_an_interrupted_call_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(target_store, "ROWS_PER_SHARD", 4)
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification", num_rows=18)
    whole = add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "whole")
    read = count_rows_read(monkeypatch)
    write = target_store.TargetStore._write

    def interrupted(self, table, index):
        if index == 3:
            raise KeyboardInterrupt
        write(self, table, index)

    monkeypatch.setattr(target_store.TargetStore, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "targets")
    monkeypatch.setattr(target_store.TargetStore, "_write", write)
    assert read == [4, 4, 4, 4]
    (tmp_path / "targets" / "unfinished-00003-1").write_bytes(b"half")  # left by a killed process
    resumed = add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "targets")
    assert read[4:] == [4, 2]
    assert resumed[:] == whole[:]


def test_a_store_of_something_else_is_refused(tmp_path):
    teacher, _ = make_pair("classification")
    rows, other_tokenizer = make_dataset("classification"), make_text_tokenizer()
    other_tokenizer.add_tokens(["another"])
    folder = tmp_path / "targets"
    add_teacher_targets(rows, teacher, TOKENIZER, output_dir=folder)
    other_teacher = make_model("bert", "classification", seed=1)
    with pytest.raises(ValueError, match=r"targets has targets of another teacher .*fingerprint"):
        add_teacher_targets(rows, other_teacher, TOKENIZER, output_dir=folder)
    with pytest.raises(ValueError, match=r"targets of another tokenizer .*vocabulary"):
        add_teacher_targets(rows, teacher, other_tokenizer, output_dir=folder)
    with pytest.raises(ValueError, match=r"targets of another dataset .*'rows': 8"):
        add_teacher_targets(rows.select(range(8)), teacher, TOKENIZER, output_dir=folder)
    with pytest.raises(ValueError, match=r"targets of another options .*hidden_states"):
        add_teacher_targets(rows, teacher, TOKENIZER, output_dir=folder, hidden_states=True)
    with pytest.raises(ValueError, match="has files that are not targets"):
        add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path)


def test_a_teacher_whose_labels_were_renamed():
    """Its weights are those of a stored teacher, but its stored targets must not be reused."""
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification")
    add_teacher_targets(rows, teacher, TOKENIZER)
    teacher.config.id2label = {0: "bad", 1: "good"}
    assert source_of(add_teacher_targets(rows, teacher, TOKENIZER)).head_spec.labels == ["bad", "good"]


def test_killed_before_the_first_row(tmp_path):
    """After that, only a part of the file that identifies the targets is left."""
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "targets.1234").write_text("{")
    stored = add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "targets")
    assert stored[:] == add_teacher_targets(rows, teacher, TOKENIZER, output_dir=tmp_path / "targets")[:]


def test_a_disk_that_fills(tmp_path):
    """Written shards stay, none is incomplete, and the next call continues."""
    script = """
import resource, signal, sys
from tests.training.teacher.test_targets import *
datasets.config.HF_DATASETS_CACHE = sys.argv[1]
target_store.ROWS_PER_SHARD = 16
rows, (teacher, _) = make_dataset("causal", num_rows=12), make_pair("causal")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    add_teacher_targets(rows, teacher, TOKENIZER, top_k=61, output_dir=sys.argv[3])
except OSError as error:
    print(error)
"""
    folder = tmp_path / "targets"
    rows = make_dataset("causal", num_rows=12)
    lengths = [sum(map(len, rows["input_ids"][start : start + 4])) for start in range(0, 12, 4)]
    limit = 4 * 61 * max(lengths) - 1  # the largest shard does not fit
    run = run_python(["-c", script, tmp_path, limit, folder])
    assert "could not be written" in run.stdout, run.stderr
    assert "call add_teacher_targets again" in run.stdout
    assert not list(folder.glob("unfinished*"))
    assert len(list(folder.glob("shard*"))) == int(np.argmax(np.array(lengths) == max(lengths)))


PROCESSES = """
import sys
from tests.training.teacher.test_targets import *
datasets.config.HF_DATASETS_CACHE = sys.argv[1]
target_store.ROWS_PER_SHARD = 4
lines.SECONDS_BETWEEN_LINES = -1
rows, (teacher, _) = make_dataset("classification", num_rows=18), make_pair("classification")
stored = add_teacher_targets(rows, teacher, TOKENIZER)
stored.to_json(f"{sys.argv[1]}/{PartialState().process_index}-of-{PartialState().num_processes}.json")
"""


@pytest.mark.parametrize("bars", [True, False])
def test_progress_is_shown_unless_datasets_shows_none(bars, monkeypatch, capsys):
    monkeypatch.setattr(lines, "SECONDS_BETWEEN_LINES", -1)
    monkeypatch.setattr(shards, "are_progress_bars_disabled", lambda: not bars)
    add_teacher_targets(make_dataset("classification"), make_pair("classification")[0], TOKENIZER)
    assert ("Reading with the teacher" in capsys.readouterr().err) == bars


def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(target_store, "ROWS_PER_SHARD", 4)
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    run = run_on_two_processes([script, tmp_path], env={"ACCELERATE_USE_CPU": "true"})
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(" rows in ") == 1  # the last line of progress, of the main process only
    teacher, _ = make_pair("classification")
    alone = add_teacher_targets(make_dataset("classification", num_rows=18), teacher, TOKENIZER)
    for rank in (0, 1):
        rows = [json.loads(line) for line in (tmp_path / f"{rank}-of-2.json").read_text().splitlines()]
        assert [row["input_ids"] for row in rows] == alone["input_ids"][:]
        np.testing.assert_allclose([r["teacher_logits"] for r in rows], alone["teacher_logits"][:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"alpha_cos": 1.0}, r"The loss 'cos' needs .* hidden states, .*set alpha_cos=0, .*hidden_states=True"),
        ({}, {"teacher_dtype": "bfloat16"}, "would have no effect on stored targets"),
        ({}, {"teacher_model_name_or_path": "some/teacher"}, "two teachers, 'some/teacher' and the columns"),
    ],
)
def test_arguments_that_do_not_fit(make_trainer, options, arguments, message):
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER, **options)
    with pytest.raises(ValueError, match=message):
        make_trainer(student, None, stored, **{"alpha_cos": 0.0, **arguments})


def test_another_teacher_beside(make_trainer):
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    with pytest.raises(ValueError, match=r"two teachers.*leave out teacher_model, or call remove_columns"):
        make_trainer(student, teacher, stored, alpha_cos=0.0)
    plain = stored.remove_columns([name for name in stored.column_names if name.startswith("teacher_")])
    make_trainer(student, teacher, plain)


def test_another_temperature(make_trainer):
    teacher, student = make_pair("causal")
    stored = add_teacher_targets(make_dataset("causal"), teacher, TOKENIZER)
    with pytest.raises(ValueError, match=r"temperature=3\.0, but the targets were stored at temperature 2\.0"):
        make_trainer(student, None, stored, alpha_cos=0.0, temperature=3.0)
    # Of classes all logits are there, for any temperature.
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    make_trainer(student, None, stored, alpha_cos=0.0, temperature=3.0)


def test_an_evaluation_set_without_targets(make_trainer):
    teacher, student = make_pair("classification")
    rows = make_dataset("classification")
    stored = add_teacher_targets(rows, teacher, TOKENIZER)
    with pytest.raises(ValueError, match="eval_dataset has no targets: call add_teacher_targets"):
        make_trainer(student, None, stored, rows, alpha_cos=0.0)
    other = add_teacher_targets(rows, make_model("bert", "classification", seed=7), TOKENIZER)
    with pytest.raises(ValueError, match=r"eval_dataset has targets of the teacher .*same teacher for both"):
        make_trainer(student, None, stored, other, alpha_cos=0.0)

    def accuracy(evaluated):
        return {"accuracy": (evaluated.predictions.argmax(-1) == evaluated.label_ids).mean()}

    # Losses that need no teacher work on rows without targets.
    trainer = make_trainer(student, None, stored, alpha_cos=0.0, trainer_options={"compute_metrics": accuracy})
    evaluated = trainer.evaluate(rows)
    assert "eval_loss" not in evaluated
    assert evaluated["eval_accuracy"] == trainer.evaluate(stored)["eval_accuracy"]
    assert torch.equal(
        torch.tensor(trainer.predict(rows).predictions), torch.tensor(trainer.predict(stored).predictions)
    )


def test_another_tokenizer(make_trainer):
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    other = make_text_tokenizer()
    other.add_tokens(["another"])
    options = {"alpha_cos": 0.0, "trainer_options": {"processing_class": other}}
    with pytest.raises(ValueError, match=r"is not the teacher's .*: both models"):
        make_trainer(student, None, stored, **options)


@pytest.mark.parametrize(("head", "label"), [("token_classification", "labels"), ("causal", "labels")])
def test_rows_that_were_cut_afterwards(make_trainer, head, label):
    teacher, student = make_pair(head)
    stored = add_teacher_targets(make_dataset(head), teacher, TOKENIZER)
    cut = stored.map(lambda row: {name: row[name][:5] for name in ("input_ids", "attention_mask", label)})
    trainer = make_trainer(student, None, cut, alpha_cos=0.0, max_steps=1)
    with pytest.raises(ValueError, match=r"A row has 5 tokens, but its .*do not tokenise, truncate, pack or mask"):
        trainer.train()


def test_other_labels(make_trainer):
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    stored = add_teacher_targets(
        make_dataset("classification"), make_model("bert", "classification", **names), TOKENIZER
    )
    other = make_model("bert", "classification", id2label={0: "c", 1: "d"}, label2id={"c": 0, "d": 1}, seed=1)
    with pytest.raises(ValueError, match=r"labels are \['c', 'd'\] and the teacher's \['a', 'b'\]"):
        make_trainer(other, None, stored, alpha_cos=0.0)


def test_columns_of_an_unknown_kind(make_trainer):
    rows = make_dataset("classification").cast_column("labels", datasets.ClassLabel(names=["no", "yes"]))
    rows = rows.add_column("teacher_source", [0] * 16).cast_column("teacher_source", datasets.ClassLabel(names=["?"]))
    with pytest.raises(ValueError, match="teacher_source has no readable record of the teacher"):
        make_trainer(make_model("bert", "classification"), None, rows, alpha_cos=0.0)


def test_losses_without_a_teacher_leave_the_columns_alone(make_trainer):
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    plain = train(make_trainer, student, None, make_dataset("classification"), alpha_kl=0.0, alpha_cos=0.0)
    ours = train(make_trainer, student, None, stored, alpha_kl=0.0, alpha_cos=0.0)
    assert torch.equal(weights(plain), weights(ours))


def test_hidden_states_are_read_only_if_asked_for(make_trainer):
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER, hidden_states=True)
    trainer = make_trainer(student, None, stored, alpha_cos=0.0)
    assert "teacher_hidden_states" not in next(iter(trainer.get_train_dataloader()))
    trainer = make_trainer(student, None, stored, alpha_kl=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "teacher_hidden_states" in batch
    assert "teacher_logits" not in batch
    trainer.train()


def test_a_resumed_training(make_trainer, tmp_path):
    """Works with rows grouped by length and with loader workers; no warning about another teacher if it is the same."""
    teacher, student = make_pair("classification")
    rows = make_dataset("classification")
    stored = add_teacher_targets(rows, teacher, TOKENIZER)
    options = {"alpha_cos": 0.0, "save_strategy": "steps", "save_steps": 3, "dataloader_num_workers": 1}
    options |= {"train_sampling_strategy": "group_by_length", "max_steps": 6, "per_device_train_batch_size": 4}
    whole = make_trainer(copy.deepcopy(student), None, stored, **options)
    whole.train()
    state = json.loads((Path(whole.args.output_dir) / "checkpoint-3" / "distillation_state.json").read_text())
    live = make_trainer(copy.deepcopy(student), teacher, rows, alpha_cos=0.0)
    assert state == live._distillation_state()
    resumed = make_trainer(copy.deepcopy(student), None, stored, **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-3"))
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("head", "change", "options", "message"),
    [
        ("mlm", None, {}, r"cannot be stored, because other.*pass teacher_model to the trainer.*causal"),
        ("classification", None, {"top_k": 4}, r"\{'top_k': 4\} would have no effect for a BertForSequenceClass"),
        ("classification", None, {"temperature": 4.0}, "would have no effect"),
        ("classification", None, {"dtype": "int8"}, "dtype='int8' should be one of 'float32', 'bfloat16'"),
        ("causal", None, {"top_k": 0}, "should be above 0"),
        ("causal", None, {"min_mass": 1.5}, "min_mass=1.5 should be from 0 to 1"),
        ("classification", None, {"min_mass": 0.5}, "would have no effect"),
        ("classification", "input_ids", {}, "no column input_ids, only attention_mask, labels. Tokenise the rows"),
        ("classification", None, {"text_columns": "review"}, "no column review, only"),
        ("causal", None, {"text_columns": "input_ids"}, "tokenise the rows, and leave out text_columns"),
        ("classification", None, {"text_columns": "input_ids", "hidden_states": True}, "Hidden states belong to"),
    ],
)
def test_what_cannot_be_stored(head, change, options, message):
    rows = make_dataset(head)
    if change is not None:
        rows = rows.remove_columns(change)
    teacher, _ = make_pair(head)
    with pytest.raises(ValueError, match=message):
        add_teacher_targets(rows, teacher, TOKENIZER, **options)


def test_what_is_not_there():
    teacher, _ = make_pair("classification")
    rows = make_dataset("classification")
    with pytest.raises(TypeError, match="teacher should be a transformers model, but is a str"):
        add_teacher_targets(rows, "some/teacher", TOKENIZER)
    with pytest.raises(TypeError, match="load it without streaming"):
        add_teacher_targets(rows.to_iterable_dataset(), teacher, TOKENIZER)
    with pytest.raises(ValueError, match="processing_class is missing: pass the tokenizer"):
        add_teacher_targets(rows, teacher)
    with pytest.raises(ValueError, match="needs a tokenizer: pass the teacher's"):
        add_teacher_targets(rows, teacher, text_columns="text")
    with pytest.raises(ValueError, match="is empty"):
        add_teacher_targets(rows.select([]), teacher, TOKENIZER)
    with pytest.raises(ValueError, match=r"already has targets.*remove_columns"):
        add_teacher_targets(add_teacher_targets(rows, teacher, TOKENIZER), teacher, TOKENIZER)


def test_a_teacher_that_overflows(cache):
    teacher, _ = make_pair("classification")
    with torch.no_grad():
        teacher.classifier.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="that are not finite in float32: choose another dtype"):
        add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    assert not list(cache.rglob("shard*"))


def test_the_teacher_is_left_as_it_was():
    teacher, _ = make_pair("classification")
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER, dtype="bfloat16")
    assert teacher.training
    assert teacher.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_no_path_is_told(tmp_path):
    """Rows do not contain the local path of the teacher."""
    make_model("bert", "classification").save_pretrained(tmp_path / "my-teacher")
    teacher = HEADS["classification"].from_pretrained(tmp_path / "my-teacher")
    stored = add_teacher_targets(make_dataset("classification"), teacher, TOKENIZER)
    assert source_of(stored).teacher == "my-teacher"
    assert str(tmp_path) not in str(stored.features)


def test_targets_of_another_teacher_are_refused_wherever_they_come_in(make_trainer):
    """A dataset is given to `evaluate` and `predict` too, and `train_dataset` may be replaced."""
    teacher, student = make_pair("classification")
    other = make_model("bert", "classification", seed=9)
    own, foreign = (add_teacher_targets(make_dataset("classification"), model, TOKENIZER) for model in (teacher, other))
    trainer = make_trainer(student, None, own, alpha_cos=0.0, max_steps=1)
    for use in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=r"The dataset has targets of the teacher .* trainer was created with"):
            use(foreign)
    trainer.train_dataset = foreign
    with pytest.raises(ValueError, match=r"The dataset has targets of the teacher .* trainer was created with"):
        trainer.train()
    trainer.train_dataset = own
    trainer.train()
    assert trainer.evaluate(own)["eval_loss_kl"] > 0
