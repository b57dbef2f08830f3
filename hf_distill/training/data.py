"""How batches are made: the same ones after a resume as without an interruption."""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_distill.training.heads import SCORED_ROWS


class RepeatableCollator:
    """A collator that draws the same random numbers for the same rows in the same epoch, and counts scored rows.

    One that masks tokens draws from the generator that dropout draws from too, and for batches that are not trained on
    yet: what a checkpoint says of it does not tell what the next batch was. Here each batch has a seed of its own, out
    of the training's seed, the epoch and the batch's first row; outside, the generators are left as they were.

    Args:
        collator: makes a batch of rows.
        seed: the training's.
        epoch: `[1]`, in shared memory, for the workers of a data loader to see.
        count_rows: gives of a batch the `[rows]` that are scored: here they are known before a device has to be asked.
            None if the batch is to be left as it is.
    """

    def __init__(
        self,
        collator: Callable[[Sequence], dict],
        seed: int,
        epoch: torch.Tensor,
        count_rows: Callable[[Mapping], torch.Tensor | None] | None = None,
    ):
        self.collator, self.seed, self.epoch, self.count_rows = collator, seed, epoch, count_rows

    def __call__(self, rows: Sequence) -> dict[str, torch.Tensor]:
        seed = zlib.crc32(_content(rows[0]), zlib.crc32(f"{self.seed} {self.epoch.item()}".encode()))
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            try:
                batch = self.collator(rows)
            finally:
                random.setstate(python)
                np.random.set_state(numpy)
        scored_rows = None if self.count_rows is None else self.count_rows(batch)
        return batch if scored_rows is None else {**batch, SCORED_ROWS: scored_rows}


def _content(value: object) -> bytes:
    """What a row holds, without where in memory it lies."""
    if isinstance(value, Mapping):
        return b"".join(map(_content, value.values()))
    if isinstance(value, list | tuple):
        return b"".join(map(_content, value))
    if isinstance(value, torch.Tensor):
        return value.numpy(force=True).tobytes()
    if isinstance(value, int | float | str):
        return f"{value} ".encode()
    return value.tobytes() if hasattr(value, "tobytes") else b""  # numpy's arrays, and images


class TellEpoch(TrainerCallback):
    """Before an epoch's first batch is made: tells a `RepeatableCollator` the epoch, and seeds the sampler.

    One that groups rows by length draws their order from the generator that dropout draws from too, which is in another
    state after a resume, and may be in another state on each process.
    """

    def __init__(self, epoch: torch.Tensor):
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        epoch = int(state.epoch)
        self.epoch.fill_(epoch)
        batch_sampler = getattr(train_dataloader, "batch_sampler", None)
        batch_sampler = getattr(batch_sampler, "batch_sampler", batch_sampler)  # without its share of this process
        sampler = getattr(batch_sampler, "sampler", None)
        if isinstance(sampler, LengthGroupedSampler):
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler.generator = torch.Generator().manual_seed(seed + epoch)
