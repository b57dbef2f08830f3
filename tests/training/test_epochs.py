"""Every row is used once per epoch, and a resumed training continues with the same batches and masks."""

import json
from collections import Counter
from functools import partial
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_distill import (
    DataCollatorForMaskedLM,
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    make_student,
    pack_documents,
    truncate_documents,
)
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.processes import run_on_two_processes

TOKENIZER = make_text_tokenizer()
BATCH_SIZE, ACCUMULATED = 4, 2


class Recorder(DistillationTrainer):
    """Keeps the batches that it trains on."""

    def train(self, *args, **kwargs):
        self.batches = []
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches.append({name: inputs[name].clone() for name in ("input_ids", "labels")})
        return super().training_step(model, inputs, *args, **kwargs)


def make_corpus():
    return Dataset.from_dict({"text": make_texts(60)})


def make_packed():
    return pack_documents(make_corpus(), TOKENIZER, block_size=16)


def make_truncated():
    return truncate_documents(make_corpus(), TOKENIZER, max_length=12)


def make_stream(num_files):
    """An endless stream, as training needs it."""
    corpus = make_corpus().to_iterable_dataset(num_shards=num_files).repeat(None).shuffle(seed=0, buffer_size=20)
    return pack_documents(corpus, TOKENIZER, block_size=16)


def make_trainer(output_dir, dataset, **options):
    teacher = make_model("roberta", "mlm")
    student = make_student(make_model("roberta", "mlm", seed=1, dropout=0.1))
    arguments = DistillationTrainingArguments(
        str(output_dir),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=ACCUMULATED,
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e-3,
        **options,
    )
    collator = DataCollatorForMaskedLM(TOKENIZER, attention=SeparateDocuments(student, teacher))
    return Recorder(student, arguments, collator, dataset, teacher_model=teacher, processing_class=TOKENIZER)


def tokens_of(batches):
    """The rows of batches without their masks and their padding."""
    return [
        tuple(token for token in row if token != TOKENIZER.pad_token_id)
        for batch in batches
        for row in batch["input_ids"].where(batch["labels"] == -100, batch["labels"]).tolist()
    ]


BY_LENGTH = {"train_sampling_strategy": "group_by_length"}
MAP_STYLE = {"packed": (make_packed, {}), "truncated": (make_truncated, BY_LENGTH)}
RESUMED = {
    "packed": (make_packed, {"num_train_epochs": 3}),
    "truncated": (make_truncated, {"num_train_epochs": 3, **BY_LENGTH}),
    "stream": (partial(make_stream, num_files=4), {"max_steps": 16}),
}


@pytest.mark.parametrize("kind", MAP_STYLE)
def test_every_row_once_in_an_epoch(tmp_path, kind):
    make, options = MAP_STYLE[kind]
    dataset = make()
    trainer = make_trainer(tmp_path, dataset, num_train_epochs=2, **options)
    trainer.train()
    seen = tokens_of(trainer.batches)
    first, second = seen[: len(dataset)], seen[len(dataset) :]
    assert Counter(first) == Counter(second) == Counter(map(tuple, dataset["input_ids"]))
    assert first != second


def test_every_document_once_in_a_pass_over_a_stream():
    corpus = make_corpus().to_iterable_dataset(num_shards=4).repeat(None)
    tokens = chain.from_iterable(row["input_ids"] for row in pack_documents(corpus, TOKENIZER, block_size=16))
    documents = list(truncate_documents(make_corpus(), TOKENIZER, max_length=38)["input_ids"])
    expected = list(chain.from_iterable(documents))
    for _ in range(3):
        assert list(islice(tokens, len(expected))) == expected


@pytest.mark.parametrize("kind", RESUMED)
def test_resume(tmp_path, kind):
    """A resume in any epoch, also within it, gives the same batches, masks and weights."""
    make, options = RESUMED[kind]
    whole = make_trainer(tmp_path, make(), **options)
    whole.train()
    steps = whole.state.max_steps
    for step in (steps // 3, steps // 2, steps - 1):
        resumed = make_trainer(tmp_path / "resumed", make(), **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for batch, other in zip(resumed.batches, whole.batches[-len(resumed.batches) :], strict=True):
            assert all(torch.equal(batch[name], other[name]) for name in batch), step
        for weight, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(weight, other), step


def test_the_masks_of_a_row_differ_from_epoch_to_epoch(tmp_path):
    trainer = make_trainer(tmp_path, make_packed(), num_train_epochs=3)
    trainer.train()
    labels = {}
    for batch in trainer.batches:
        for row, own in zip(tokens_of([batch]), batch["labels"].tolist(), strict=True):
            labels.setdefault(row, set()).add(tuple(own))
    assert sum(map(len, labels.values())) > 2.9 * len(labels)


# What is trained on, and its options. `dispatch_batches`: whether one process reads a stream for all of them.
NOT_DISPATCHED = {"max_steps": 4, "accelerator_config": {"dispatch_batches": False}}
CASES_ON_PROCESSES = {
    "packed": (make_packed, {"num_train_epochs": 2}),
    "truncated": (make_truncated, {"num_train_epochs": 2, **BY_LENGTH}),
    "stream of 4 files": (partial(make_stream, num_files=4), NOT_DISPATCHED),
    "stream of 1 file": (partial(make_stream, num_files=1), NOT_DISPATCHED),
    "dispatched stream": (partial(make_stream, num_files=4), {"max_steps": 4}),
}


def make_case(name):
    make, options = CASES_ON_PROCESSES[name]
    return make(), options


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    """The rows that each of the two processes used, by case."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("batches_on_processes.py")
    run = run_on_two_processes([script, folder])
    results = [folder / f"{rank}.json" for rank in range(2)]
    assert all(result.exists() for result in results), run.stderr[-3000:]
    ranks = [json.loads(result.read_text()) for result in results]
    return {case: [rank[case] for rank in ranks] for case in CASES_ON_PROCESSES}


RESUMED_ON_PROCESSES = ["truncated", "stream of 4 files"]


@pytest.mark.parametrize("case", RESUMED_ON_PROCESSES)
def test_resume_on_two_processes(on_two_processes, case):
    for seen in on_two_processes[case]:
        assert 0 < len(seen["resumed"]) < len(seen["whole"])
        assert seen["resumed"] == seen["whole"][-len(seen["resumed"]) :]
        assert seen["resumed_labels"] == seen["labels"][-len(seen["resumed"]) :]


@pytest.mark.parametrize("case", CASES_ON_PROCESSES)
def test_two_processes_draw_different_masks(on_two_processes, case):
    """Which positions of the first rows have a label."""
    first, second = (
        [[label != -100 for label in row] for row in seen["labels"][:BATCH_SIZE]] for seen in on_two_processes[case]
    )
    assert first != second


@pytest.mark.parametrize("case", ["packed", "truncated"])
def test_two_processes_share_an_epoch(on_two_processes, case):
    """Each row is used by one process. If rows do not fill the last batches, rows of the first batches are repeated."""
    dataset, _ = make_case(case)
    rows = Counter(map(tuple, dataset["input_ids"]))
    ranks = [list(map(tuple, seen["whole"])) for seen in on_two_processes[case]]
    per_epoch = len(ranks[0]) // 2
    assert 0 < 2 * per_epoch - len(dataset) < 2 * BATCH_SIZE
    for epoch in range(2):
        first, second = (rank[epoch * per_epoch :][:per_epoch] for rank in ranks)
        seen = Counter(first + second)
        assert seen.keys() == rows.keys()
        repeated = seen - rows
        assert set(repeated) <= {*first[:BATCH_SIZE], *second[:BATCH_SIZE]}
        assert repeated.total() == 2 * per_epoch - len(dataset)


@pytest.mark.parametrize("case", ["stream of 1 file", "dispatched stream"])
def test_two_processes_take_turns_in_a_stream(on_two_processes, case):
    stream, _ = make_case(case)
    ranks = [list(map(tuple, seen["whole"])) for seen in on_two_processes[case]]
    seen = []
    for start in range(0, len(ranks[0]), BATCH_SIZE):
        seen += ranks[0][start : start + BATCH_SIZE] + ranks[1][start : start + BATCH_SIZE]
    assert len(seen) == 4 * 2 * ACCUMULATED * BATCH_SIZE
    assert seen == [tuple(row["input_ids"]) for row in islice(stream, len(seen))]


def test_two_processes_read_their_own_files(on_two_processes):
    stream, _ = make_case("stream of 4 files")
    for rank, seen in enumerate(on_two_processes["stream of 4 files"]):
        own = stream.shard(num_shards=2, index=rank)
        assert seen["whole"] == [row["input_ids"] for row in islice(own, len(seen["whole"]))]


def test_every_evaluation_has_the_same_masks(tmp_path):
    trainer = make_trainer(tmp_path, make_packed())
    first, second = (trainer.evaluate(make_packed()) for _ in range(2))
    names = ["eval_loss", "eval_loss_kl", "eval_loss_task", "eval_loss_cos"]
    assert [first[name] for name in names] == [second[name] for name in names]
