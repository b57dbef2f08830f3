"""Batches that are the same after a resume, in every evaluation, and different from each other."""

import pickle
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    TrainerCallback,
    default_data_collator,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_distill.training.batches import Progress, RepeatableCollator, begin_epoch, own_generators
from hf_distill.training.scoring.find_head import find_head
from tests.conftest import FAMILY_OF_HEAD, VOCAB_SIZE, make_model, make_text_tokenizer

TOKENIZER = make_text_tokenizer()
HEAD = find_head(make_model("bert", "mlm", num_layers=1))
NUM_BATCHES, BATCH_SIZE = 8, 4


def draw(rows):
    """A collator that draws from every global random generator."""
    return {"torch": torch.rand(3), "numpy": np.random.rand(3), "python": random.random()}


def as_text(batch):
    return str({name: value if isinstance(value, float) else value.tolist() for name, value in batch.items()})


def drawn(num_batches=4, *, seed=0, process=0, epoch=0, first_batch=0, collator=draw):
    progress = Progress()
    progress.begin(epoch, first_batch)
    repeatable = RepeatableCollator(collator, HEAD, [seed, process], progress)
    return [as_text(repeatable([None])) for _ in range(num_batches)]


def test_random_numbers_follow_from_seed_process_epoch_and_number():
    first = drawn()
    torch.rand(7), np.random.rand(7), random.random()  # whatever else was drawn
    assert drawn() == first
    assert drawn(2, first_batch=2) == first[2:]
    others = [drawn(seed=1), drawn(process=1), drawn(epoch=1), drawn(first_batch=4)]
    assert len({*first, *(batch for other in others for batch in other)}) == 20


def test_a_data_loader_that_begins_again():
    progress = Progress()
    repeatable = RepeatableCollator(draw, HEAD, [0, 0], progress)
    passes = []
    for epoch in (0, 0, 1):
        progress.begin(epoch)
        passes.append([as_text(repeatable([None])) for _ in range(3)])
    assert passes[0] == passes[1]
    assert not {*passes[0]} & {*passes[2]}


def test_the_generators_are_left_as_they_were():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    drawn()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def from_torch(generator):
    return torch.rand(3, generator=generator).tolist()


def from_numpy(generator):
    return generator.random(3).tolist()


def from_python(generator):
    return [generator.random() for _ in range(3)]


class Owner:
    """A collator that draws from a generator in one of its attributes."""

    def __init__(self, generator, draw_from):
        self.generator, self.draw_from = generator, draw_from

    def __call__(self, rows):
        return {"drawn": torch.tensor(self.draw_from(self.generator))}

    def collate(self, rows):
        return self(rows)


class Wrapper:
    def __init__(self, inner):
        self.parts = {"inner": [inner]}

    def __call__(self, rows):
        return self.parts["inner"][0](rows)


def collate_with(rows, owner):
    return owner(rows)


def closing_over(owner):
    return lambda rows: owner(rows)


PYTHON_GENERATOR = random.Random(7)


def draw_from_a_global(rows):
    return {"drawn": torch.tensor(from_python(PYTHON_GENERATOR))}


OWNERS = {
    "torch": lambda seed: Owner(torch.Generator().manual_seed(seed), from_torch),
    "numpy": lambda seed: Owner(np.random.default_rng(seed), from_numpy),
    "numpy, legacy": lambda seed: Owner(np.random.RandomState(seed), from_numpy),
    "python": lambda seed: Owner(random.Random(seed), from_python),
    "in a wrapper": lambda seed: Wrapper(Owner(random.Random(seed), from_python)),
    "in a partial": lambda seed: partial(collate_with, owner=Owner(random.Random(seed), from_python)),
    "a method": lambda seed: Owner(random.Random(seed), from_python).collate,
    "a closure": lambda seed: closing_over(Owner(random.Random(seed), from_python)),
}


def state_of(generator):
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    return pickle.dumps(generator)


@pytest.mark.parametrize("make", OWNERS.values(), ids=OWNERS)
def test_generators_that_a_collator_owns(make):
    collator = make(7)
    (generator,) = own_generators(collator)
    before = state_of(generator)
    first = drawn(collator=collator)
    assert len(set(first)) == 4
    assert state_of(generator) == before
    assert drawn(collator=make(7)) == first
    assert drawn(2, first_batch=2, collator=make(7)) == first[2:]
    assert not {*drawn(collator=make(8))} & {*first}  # its seed makes a difference


def test_a_generator_that_a_function_names():
    first = drawn(collator=draw_from_a_global)
    assert len(set(first)) == 4
    assert drawn(collator=draw_from_a_global) == first


def test_two_generators_draw_different_numbers():
    owners = [Owner(random.Random(7), from_python) for _ in range(2)]
    progress = Progress()
    collator = RepeatableCollator(lambda rows: [owner(rows)["drawn"] for owner in owners], HEAD, [0, 0], progress)
    one, other = collator([None])
    assert not torch.equal(one, other)


# What follows is about the trainer's data loaders.


class Thing:
    """A row without named columns."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


ROWS = {
    "bytes": lambda index: bytes([index]),
    "paths": lambda index: Path(f"row-{index}"),
    "objects": Thing,
    "nothing": lambda index: None,
    "equal rows": lambda index: {"input_ids": [5, 6]},
    "bfloat16": lambda index: {"input_ids": torch.full((2,), float(index), dtype=torch.bfloat16)},
}


def make_batch(rows):
    """Rows of random tokens, whatever the rows are; their labels are tokens too."""
    shape = (len(rows) if isinstance(rows, list) else 4, 6)
    return {name: torch.randint(5, VOCAB_SIZE, shape) for name in ("input_ids", "labels")}


def batches_of(dataloader):
    return [batch["input_ids"].tolist() for batch in dataloader]


def make_mlm_trainer(make_trainer, rows, collator, eval_rows=None, **options):
    student = make_model("bert", "mlm", num_layers=1)
    options = {"alpha_kl": 0.0, "alpha_cos": 0.0, "remove_unused_columns": False, **options}
    options = {"per_device_train_batch_size": BATCH_SIZE, "per_device_eval_batch_size": BATCH_SIZE, **options}
    return make_trainer(student, None, rows, eval_rows, data_collator=collator, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("make_row", ROWS.values(), ids=ROWS)
def test_every_batch_is_drawn_anew(make_trainer, make_row, num_workers):
    rows = [make_row(index) for index in range(NUM_BATCHES * BATCH_SIZE)]
    trainer = make_mlm_trainer(make_trainer, rows, make_batch, dataloader_num_workers=num_workers)
    batches = batches_of(trainer.get_train_dataloader())
    assert len({str(batch) for batch in batches}) == NUM_BATCHES


def test_workers_draw_what_one_process_draws(make_trainer):
    rows = [None] * (NUM_BATCHES * BATCH_SIZE)
    batches = [
        batches_of(
            make_mlm_trainer(make_trainer, rows, make_batch, dataloader_num_workers=number).get_train_dataloader()
        )
        for number in (0, 2, 3)
    ]
    assert batches[0] == batches[1] == batches[2]


class GivesBatches(torch.utils.data.Dataset):
    """`__getitems__` returns a batch instead of a list of rows, and the collator does not change it."""

    def __len__(self):
        return NUM_BATCHES * BATCH_SIZE

    def __getitems__(self, indices):
        return make_batch(indices)


def test_a_data_set_that_gives_batches(make_trainer):
    trainer = make_mlm_trainer(make_trainer, GivesBatches(), lambda batch: batch, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


class Stream(IterableDataset):
    """A stream of rows without a length, in the same order in each pass, shared among workers."""

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        turn, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(turn, NUM_BATCHES * BATCH_SIZE, step):
            yield {"input_ids": [5 + index, 6, 7, 8, 9, 10]}


class Recorder:
    """Makes a trainer keep the batches it trains on, with their steps."""

    def __init__(self, trainer):
        self.batches, inner = [], trainer.training_step

        def training_step(model, inputs, *args, **kwargs):
            self.batches.append({name: inputs[name].tolist() for name in ("input_ids", "labels")})
            return inner(model, inputs, *args, **kwargs)

        trainer.training_step = training_step


def masked_rows(num_rows=NUM_BATCHES * BATCH_SIZE):
    return Dataset.from_dict({"input_ids": [[5 + index, 6, 7, 8, 9, 10] for index in range(num_rows)]})


class MasksByItself:
    """Masks with a generator of its own."""

    def __init__(self, generator, draw_from):
        self.generator, self.draw_from = generator, draw_from

    def __call__(self, rows):
        tokens = torch.tensor([row["input_ids"] for row in rows])
        labels = tokens.clone()
        labels[:, int(6 * self.draw_from(self.generator)[0])] = 5 + int(50 * self.draw_from(self.generator)[0])
        return {"input_ids": tokens, "labels": labels}


def for_language_modelling(seed):
    return DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.5, seed=seed)


COLLATORS = {
    "language modelling": lambda: for_language_modelling(None),
    "language modelling, seeded": lambda: for_language_modelling(7),
    "torch": lambda: MasksByItself(torch.Generator().manual_seed(7), from_torch),
    "numpy": lambda: MasksByItself(np.random.default_rng(7), from_numpy),
    "python": lambda: MasksByItself(random.Random(7), from_python),
}


def train(trainer, **options):
    recorder = Recorder(trainer)
    trainer.train(**options)
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    return recorder.batches, weights


@pytest.mark.parametrize(
    ("kind", "num_workers"), [*((kind, 0) for kind in COLLATORS), ("language modelling, seeded", 2), ("numpy", 2)]
)
def test_a_resume_draws_what_was_to_come(make_trainer, kind, num_workers):
    """In the second of three epochs, and in the middle of it."""
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": num_workers}
    options |= {"gradient_accumulation_steps": 2}
    whole = make_mlm_trainer(make_trainer, masked_rows(), COLLATORS[kind](), **options)
    batches, weights = train(whole)
    assert len({str(batch) for batch in batches}) == len(batches) == 3 * NUM_BATCHES
    resumed = make_mlm_trainer(make_trainer, masked_rows(), COLLATORS[kind](), **options)
    checkpoint = str(Path(whole.args.output_dir) / "checkpoint-5")
    batches_of_resumed, weights_of_resumed = train(resumed, resume_from_checkpoint=checkpoint)
    assert batches_of_resumed == batches[10:]
    assert torch.equal(weights_of_resumed, weights)


@pytest.mark.parametrize(("rows", "num_workers"), [(masked_rows, 0), (masked_rows, 2), (Stream, 2)])
@pytest.mark.parametrize("kind", COLLATORS)
def test_every_evaluation_and_every_prediction_draws_the_same(make_trainer, kind, rows, num_workers):
    options = {"dataloader_num_workers": num_workers}
    trainer = make_mlm_trainer(make_trainer, masked_rows(), COLLATORS[kind](), rows(), **options)
    losses = [trainer.evaluate()["eval_loss"]]
    losses.append(trainer.predict(rows()).metrics["test_loss"])
    torch.rand(1), np.random.rand(1), random.random()
    losses.append(trainer.evaluate()["eval_loss"])
    batches = [batches_of(trainer.get_eval_dataloader()), batches_of(trainer.get_test_dataloader(rows()))]
    assert losses == [losses[0]] * 3
    assert batches[0] == batches[1]


PERSISTENT = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}


def test_workers_that_stay_draw_the_same_in_every_evaluation(make_trainer):
    trainer = make_mlm_trainer(make_trainer, None, COLLATORS["numpy"](), Stream(), **PERSISTENT)
    assert len({trainer.evaluate()["eval_loss"] for _ in range(3)}) == 1


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.long), 2])
@pytest.mark.parametrize(
    "kind", ["language modelling", pytest.param("language modelling, seeded", marks=pytest.mark.long)]
)
def test_the_second_pass_over_a_stream_draws_anew(make_trainer, kind, num_workers):
    options = {"max_steps": 3 * NUM_BATCHES, "dataloader_num_workers": num_workers}
    batches, _ = train(make_mlm_trainer(make_trainer, Stream(), COLLATORS[kind](), **options))
    assert len(batches) == 3 * NUM_BATCHES
    assert len({str(batch["labels"]) for batch in batches}) == len(batches)


def test_an_epoch_that_is_left_early(make_trainer):
    """The next evaluation or epoch draws different numbers."""

    class LeaveEarly(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 2

    rows = [{"input_ids": [5, 6, 7, 8, 9, 10]}] * (NUM_BATCHES * BATCH_SIZE)
    trainer = make_mlm_trainer(make_trainer, rows, COLLATORS["language modelling"](), num_train_epochs=2)
    trainer.add_callback(LeaveEarly())
    batches, _ = train(trainer)
    assert len({str(batch["labels"]) for batch in batches}) == len(batches) == 2 + NUM_BATCHES


def make_head_trainer(make_trainer, head, rows, collator, **options):
    student = make_model(FAMILY_OF_HEAD.get(head, "bert"), head, num_layers=1)
    options = {"alpha_kl": 0.0, "alpha_cos": 0.0, "max_steps": 1, **options}
    trainer_options = {"processing_class": TOKENIZER}
    return make_trainer(student, None, rows, data_collator=collator, trainer_options=trainer_options, **options)


TOKENS = {"input_ids": [[5, 6, 7], [5, 6]], "attention_mask": [[1, 1, 1], [1, 1]]}
OF_UNEQUAL_LENGTH = {**TOKENS, "labels": [[1, 1, 1], [0, 0]]}


@pytest.mark.parametrize(
    ("head", "columns", "collator", "message"),
    [
        ("token_classification", OF_UNEQUAL_LENGTH, None, "2 to 3 labels, .*=DataCollatorForTokenClassification"),
        (
            "causal",
            OF_UNEQUAL_LENGTH,
            None,
            r"DataCollatorWithPadding does not pad labels: pass data_collator=DataColl",
        ),
        ("seq2seq", OF_UNEQUAL_LENGTH, None, r"data_collator=DataCollatorForSeq2Seq\(tokenizer\), or pad the rows"),
        (
            "classification",
            {**TOKENS, "labels": [1, 0]},
            default_data_collator,
            r"2 to 3 input_ids, and default_data_collator does not pad input_ids: pass data_collator=DataCollatorWith",
        ),
        (
            "multiple_choice",
            {"input_ids": [[[5, 6], [7]], [[5], [5, 6, 7], [8]]], "labels": [1, 0]},
            None,
            r"2 to 3 input_ids, .*data_collator=DataCollatorForMultipleChoice\(tokenizer\)",
        ),
        (
            "classification",
            {**TOKENS, "labels": [1, None]},
            None,
            "labels has None: remove the rows",
        ),
    ],
)
def test_rows_that_make_no_batch(make_trainer, head, columns, collator, message):
    trainer = make_head_trainer(make_trainer, head, Dataset.from_dict(columns), collator)
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("collator", [None, default_data_collator])
def test_labels_of_text(make_trainer, name, collator):
    rows = {**TOKENS, name: ["good", "bad"]}
    with pytest.raises(ValueError, match=rf"train_dataset: .*{name} has text.*class_encode_column\('{name}'\)"):
        make_head_trainer(make_trainer, "classification", Dataset.from_dict(rows), collator)
    # Columns of other datasets than those of `datasets` are unknown before the first batch.
    as_list = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    trainer = make_head_trainer(make_trainer, "classification", as_list, collator)
    with pytest.raises(ValueError, match=f"{name} has text: convert classes|not pad input_ids"):
        trainer.train()


def test_a_collator_that_reads_text(make_trainer):
    def collate_text(rows):
        labels = torch.tensor([["bad", "good"].index(row["label"]) for row in rows])
        return {"input_ids": torch.tensor([[5, 6, 7]] * len(rows)), "labels": labels}

    rows = Dataset.from_dict({**TOKENS, "label": ["good", "bad"]})
    make_head_trainer(make_trainer, "classification", rows, collate_text).train()


def test_a_collator_that_calls_one_of_transformers(make_trainer):
    def collate_and_count(rows):
        return {**DataCollatorWithPadding(TOKENIZER)(rows), "number": len(rows)}

    rows = Dataset.from_dict(OF_UNEQUAL_LENGTH)
    trainer = make_head_trainer(make_trainer, "token_classification", rows, collate_and_count)
    with pytest.raises(
        ValueError, match="2 to 3 labels, and collate_and_count does not pad labels: pass data_collator="
    ):
        trainer.train()


def test_the_error_of_a_collator_that_somebody_wrote(make_trainer):
    def collate(rows):
        raise ValueError("something else")

    trainer = make_head_trainer(make_trainer, "token_classification", Dataset.from_dict(OF_UNEQUAL_LENGTH), collate)
    with pytest.raises(ValueError, match=r"^something else$"):
        trainer.train()


def test_lengths_in_a_column_are_read_once():
    """Each row of a column takes 0.1 ms, and sorting a million rows by length would take minutes in every epoch."""
    lengths = [3, 9, 4, 1, 5, 8, 2, 7] * 4
    rows = Dataset.from_dict({"length": lengths})
    sampler = LengthGroupedSampler(2, lengths=rows["length"])
    begin_epoch(Progress(), DataLoader(rows, batch_size=2, sampler=sampler), seed=3, epoch=1, skipped_batches=0)
    assert sampler.lengths == lengths
    assert isinstance(sampler.lengths, list)
    in_memory = LengthGroupedSampler(2, lengths=lengths, generator=torch.Generator().manual_seed(4))
    assert list(sampler) == list(in_memory)
