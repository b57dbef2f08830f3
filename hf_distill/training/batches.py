"""Reproducible batches: a resumed training gets the same batches as an uninterrupted one."""

import inspect
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import DataCollatorForLanguageModeling, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.inputs import attended_by_mask
from hf_distill.training.scoring.known_indices import SCORED_INDICES, scored_indices

RandomGenerator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

SEARCH_DEPTH, SEARCH_WIDTH = 4, 1000
"""Limits of the search for a collator's generators: nesting depth, and length of lists. Longer lists are data."""


class Progress:
    """The epoch and first batch of a data loader, in memory shared with its workers."""

    def __init__(self):
        self._values = torch.zeros(3, dtype=torch.int64).share_memory_()

    def begin(self, epoch: int = 0, first_batch: int = 0) -> None:
        """Sets epoch and first batch. Call it before the data loader makes its first batch.

        Args:
            epoch: the epoch; for a stream, the pass over it.
            first_batch: how many batches of the epoch a resumed training skips before they reach the collator.
        """
        self._values.copy_(torch.tensor([epoch, first_batch, self._values[2].item() + 1]))

    def read(self) -> tuple[int, int, int]:
        """The epoch, the first batch, and the number of calls of `begin`."""
        epoch, first_batch, num_begun = self._values.tolist()
        return epoch, first_batch, num_begun


class RepeatableCollator:
    """A collator that draws the same random numbers for the same batch of the same epoch.

    A collator that masks tokens usually shares its random generator with dropout, and runs ahead of the training. A
    checkpoint then cannot restore what the next batch would have been. Here each batch has its own seed, derived from
    the training's seed, the process, the epoch and the number of the batch. Afterwards the generators (the global ones
    of torch, NumPy and Python, and the collator's own) are restored.

    Args:
        collator: makes a batch from rows.
        head: the student's head.
        seed: the training's seed and the process, so that data loaders differ from each other.
        progress: the position of the data loader.
        count_scored: computes the `[scored]` indices of a batch on the CPU, which are added to the batch. None to leave
            the batch unchanged.

    Raises:
        ValueError: in a call, if a collator of transformers cannot turn the rows into tensors.
    """

    def __init__(
        self,
        collator: Callable[[Sequence], dict],
        head: Head,
        seed: Sequence[int],
        progress: Progress,
        count_scored: Callable[[Mapping], torch.Tensor | None] | None = None,
    ):
        self.collator, self.head, self.seed = collator, head, seed
        self.progress, self.count_scored = progress, count_scored
        # The initial state is part of the seed, so the seed that the collator was created with has an effect.
        self._own = [(generator, _digest(generator)) for generator in own_generators(collator)]
        self._beginning: tuple[int, int, int] | None = None
        self._num_made = 0

    def __call__(self, rows: Sequence) -> dict[str, torch.Tensor]:
        seed = [*self.seed, *self._next_batch()]
        with _seeded([(torch.default_generator, 0), (np.random, 0), (random, 0), *self._own], seed):
            try:
                batch = self.collator(rows)
            except (TypeError, ValueError) as error:
                is_theirs = is_of_transformers(self.collator) or "excessive nesting" in str(error)
                if is_theirs and (reason := why_not_collated(rows, self.collator, self.head, error)):
                    raise ValueError(reason) from error
                raise
        scored_indices = None if self.count_scored is None else self.count_scored(batch)
        return batch if scored_indices is None else {**batch, SCORED_INDICES: scored_indices}

    def _next_batch(self) -> tuple[int, int]:
        """The epoch and the batch's number in it. Workers take turns; of a stream, each has its own part."""
        beginning = self.progress.read()
        if beginning != self._beginning:
            self._beginning, self._num_made = beginning, 0
        epoch, first_batch, _ = beginning
        worker = get_worker_info()
        turn, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = first_batch + self._num_made * num_workers + turn
        self._num_made += 1
        return epoch, number


def begin_epoch(progress: Progress, dataloader: DataLoader, seed: int, epoch: int, skipped_batches: int) -> None:
    """Tells the collator the epoch, and seeds the sampler. Call it before the epoch's first batch is made.

    A sampler that groups rows by length shares its random generator with dropout. The generator's state differs after a
    resume, and may differ between processes. Its lengths may be a column of `datasets`, which is slow row by row.

    Args:
        progress: the collator's progress.
        dataloader: the data loader of the epoch.
        seed: the training's seed.
        epoch: the epoch; for a stream, the pass over it.
        skipped_batches: how many batches a resumed training skips. For a stream, the collator makes them anyway.
    """
    is_stream = isinstance(getattr(dataloader, "dataset", None), IterableDataset)
    progress.begin(epoch, 0 if is_stream else skipped_batches)
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    batch_sampler = getattr(batch_sampler, "batch_sampler", batch_sampler)  # the whole, not this process's share
    sampler = getattr(batch_sampler, "sampler", None)
    if isinstance(sampler, LengthGroupedSampler):
        sampler.generator = torch.Generator().manual_seed(seed + epoch)
        sampler.lengths = sampler.lengths[:]


def why_not_collated(rows: Sequence, collator: object, head: Head, error: Exception) -> str | None:
    """Explains which column cannot become a tensor, and what would work; None if no column is the reason."""
    if not isinstance(rows, list) or not isinstance(rows[0], Mapping):
        return None
    name_of_collator = getattr(collator, "__name__", type(collator).__name__)
    padded = getattr(getattr(collator, "tokenizer", None), "model_input_names", [])
    named = re.search(r"`(\w+)` in this case", str(error))
    for name in [named[1]] if named and named[1] in rows[0] else rows[0]:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            return text_in_column(name)
        if any(value is None for value in values):
            return f"The column {name} has None: remove the rows without a value, or the column."
        lists = [value for value in values if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0]
        lengths = {len(value) for value in lists}
        is_nested = any(isinstance(inner, list) or getattr(inner, "ndim", 0) > 0 for value in lists for inner in value)
        if len(lengths) > 1 and (is_nested or name not in padded):
            return (
                f"The rows have {min(lengths)} to {max(lengths)} {name}, and {name_of_collator} does not pad {name}: "
                f"pass data_collator={head.collator}(tokenizer), or pad the rows."
            )
    return None


def text_in_column(name: str) -> str:
    """The error message for a column of text, with what would work instead."""
    if not name.startswith("label"):
        return f"The column {name} has text: tokenise it, or remove the column."
    hint = f"for instance with dataset.class_encode_column({name!r})"
    return f"The column {name} has text: convert classes to integers, {hint}."


def is_of_transformers(collator: object) -> bool:
    """Whether a collator comes from transformers, whose collators convert every column to tensors."""
    return str(getattr(collator, "__module__", "")).startswith("transformers.")


def own_generators(collator: object) -> list[RandomGenerator]:
    """The random generators that a collator owns, in addition to the global ones.

    The search covers its attributes, the objects that it wraps, and the variables that a function refers to.
    """
    found, parts = [], [collator]
    seen: set[int] = set()
    for _ in range(SEARCH_DEPTH + 1):
        parts = list({id(part): part for part in parts if id(part) not in seen}.values())
        seen.update(map(id, parts))
        for part in parts:
            if isinstance(part, DataCollatorForLanguageModeling) and part.seed is not None and part.generator is None:
                part.generator = part.get_generator(part.seed)  # it would do that at its first batch, in each worker
            if isinstance(part, RandomGenerator) and not isinstance(part, random.SystemRandom):
                found.append(part)
        parts = [inner for part in parts for inner in _parts(part)]
    return found


def _parts(value: object) -> Iterable[object]:
    """The objects that a value holds or refers to."""
    if isinstance(value, RandomGenerator | type | ModuleType):
        return []
    if isinstance(value, dict):
        return value.values() if len(value) <= SEARCH_WIDTH else []
    if isinstance(value, list | tuple | set):
        return value if len(value) <= SEARCH_WIDTH else []
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        names = inspect.getclosurevars(value)
        return [*names.nonlocals.values(), *names.globals.values()]
    return getattr(value, "__dict__", {}).values()


@contextmanager
def _seeded(generators: Sequence[tuple[RandomGenerator | ModuleType, int]], seed: Sequence[int]) -> Iterator[None]:
    """While open, each generator is seeded by `seed`, its place and its own number. Then its state is restored."""
    states = [_state(generator) for generator, _ in generators]
    try:
        for place, (generator, number) in enumerate(generators):
            _seed(generator, np.random.SeedSequence([*seed, place, number]))
        yield
    finally:
        for (generator, _), state in zip(generators, states, strict=True):
            _set_state(generator, state)


# The modules `random` and `np.random` have the same functions as `random.Random` and `np.random.RandomState`.
def _state(generator: RandomGenerator | ModuleType) -> object:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if hasattr(generator, "getstate") else generator.get_state()


def _set_state(generator: RandomGenerator | ModuleType, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif hasattr(generator, "setstate"):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _seed(generator: RandomGenerator | ModuleType, seed: np.random.SeedSequence) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    elif hasattr(generator, "get_state"):
        words: Any = seed.generate_state(4)  # `random` does not accept arrays, and has no `get_state`
        generator.seed(words)
    else:
        generator.seed(int(seed.generate_state(1, np.uint64)[0]))


def _digest(generator: RandomGenerator) -> int:
    state = _state(generator)
    return zlib.crc32(bytes(state) if isinstance(state, torch.Tensor) else repr(state).encode())


class BatchTeacher(Protocol):
    """What `BatchTrainer` needs to know about the teacher, live or stored."""

    def collator(self, collator: Callable[[Sequence], dict]) -> Callable[[Sequence], dict]: ...


class BatchTrainer(Trainer):
    """A `Trainer` that makes the same batches after a resume, and loses no batches at the end of a stream.

    Attributes:
        left_over_batches: batches at the end of a stream that are too few for a step. The next pass starts with them.
    """

    head: Head
    teacher: BatchTeacher | None
    data_collator: Callable[[Any], dict]

    def __init__(self, *args, **kwargs):
        self._train_progress, self._eval_progress = Progress(), Progress()
        self.left_over_batches: list[dict] = []
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`, but a collator draws the same random numbers after a resume.

        Raises:
            ValueError: if one process makes batches for all, in one row without padding.
        """
        dispatched = self.args.accelerator_config.dispatch_batches
        if dispatched is None:
            dispatched = isinstance(self.train_dataset, IterableDataset)
        attention = getattr(self.data_collator, "attention", None)
        if dispatched and self.accelerator.num_processes > 1 and getattr(attention, "is_padding_free", False):
            raise ValueError(
                "The collator joins all rows of a batch into one, which cannot be split among processes: set "
                "accelerator_config={'dispatch_batches': False}, or load the models with attn_implementation='sdpa' or "
                "'eager'."
            )
        count_scored = None
        if self.head.per_token and not dispatched:  # a batch made by one process for all is later split by examples
            count_scored = partial(scored_indices, self.head, self.args.kl_positions)
        with self._repeatable_collator(self._train_progress, count_scored):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in `Trainer`, but a collator draws the same random numbers in every evaluation."""
        self._eval_progress.begin()
        with self._repeatable_collator(self._eval_progress):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in `Trainer`, but a collator draws the same random numbers as in an evaluation."""
        self._eval_progress.begin()
        with self._repeatable_collator(self._eval_progress):
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _repeatable_collator(self, *options) -> Iterator[None]:
        collator = self.data_collator
        process = self.args.process_index // (self.get_tp_size() * self.get_cp_size())  # of those with different rows
        self.data_collator = RepeatableCollator(collator, self.head, [self._data_seed, process], *options)
        if self.teacher is not None:
            self.data_collator = self.teacher.collator(self.data_collator)
        try:
            yield
        finally:
            self.data_collator = collator

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _run_epoch(self, *, epoch, train_dataloader, epochs_trained, steps_trained_in_current_epoch, **others) -> None:
        """As in `Trainer`, but first tells the collator which epoch and batch come next."""
        skipped = steps_trained_in_current_epoch if epoch == epochs_trained else 0
        begin_epoch(self._train_progress, train_dataloader, self._data_seed, epoch, skipped)
        own = {"epochs_trained": epochs_trained, "steps_trained_in_current_epoch": steps_trained_in_current_epoch}
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **own, **others)

    def _track_num_input_tokens(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """As in `Trainer`, but counts each token that is not padding once, even with the mask of packed documents."""
        if inputs.get("attention_mask") is not None:
            inputs = {**inputs, "attention_mask": attended_by_mask(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | None]:
        """As in `Trainer`, but batches at the end of a stream that are too few for a step wait for the next pass."""
        if self.is_in_train and self.state.global_step >= self.state.max_steps:
            return [], None  # resumed at its last step: Trainer would make one more
        batches, self.left_over_batches = self.left_over_batches, []
        while len(batches) < num_batches and (batch := next(epoch_iterator, None)) is not None:
            batches.append(batch)
        if len(batches) < num_batches:
            batches, self.left_over_batches = [], batches
        return batches, self._get_num_items_in_batch(batches, device)
