"""Stores what a teacher computed for a dataset in shards. A shard is written completely or not at all."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import datasets
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from datasets.utils import are_progress_bars_disabled

from hf_distill.files import read_json
from hf_distill.progress import Progress

MOST_SHARDS = 1000


class ShardStore:
    """The folder with what one teacher computed for the rows of one dataset.

    Args:
        folder: the folder; None for a folder of its own in the cache of `datasets`.
        dataset: the rows that the teacher reads.
        manifest: everything that the content depends on.
        rows_per_shard: the minimum number of rows in a shard. A kill loses at most one shard on each process.

    Attributes:
        content: what is stored, for messages.
        function: the function that computes it, for messages.

    Raises:
        ValueError: if the folder has other content.
    """

    content = "targets"
    function = "add_teacher_targets"
    cache = "teacher_targets"

    def __init__(
        self,
        folder: str | os.PathLike | None,
        dataset: Dataset,
        manifest: Mapping[str, object],
        rows_per_shard: int,
    ):
        self.dataset = dataset
        if folder is None:
            folder = Path(datasets.config.HF_DATASETS_CACHE, self.cache, Hasher.hash(manifest))
        self.folder = Path(folder)
        self.rows_per_shard = rows_per_shard
        self.num_shards = -(-len(dataset) // self.rows_per_shard)
        self.state = PartialState(cpu=not torch.accelerator.is_available())
        with self.state.main_process_first():
            self._claim(json.loads(json.dumps(manifest)))

    def _claim(self, manifest: dict[str, dict]) -> None:
        """Creates the folder, or checks that its content matches."""
        file = self.folder / f"{self.content}.json"
        if not file.exists():
            if self.folder.exists() and any(not other.match(f"{file.stem}.*") for other in self.folder.iterdir()):
                raise ValueError(f"{self.folder} has files that are not {self.content}: choose another output_dir.")
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")  # two trainings may do this at once
            unfinished.write_text(json.dumps(manifest, indent=2) + "\n")
            unfinished.replace(file)
            return
        written = read_json(file)
        if different := [name for name, value in manifest.items() if written.get(name) != value]:
            differences = "; ".join(f"{name} was {written.get(name)} and is {manifest[name]}" for name in different)
            raise ValueError(
                f"{self.folder} has {self.content} of another {' and '.join(different)} ({differences}): choose "
                f"another output_dir, or delete this folder."
            )

    def fill_shards(
        self,
        compute: Callable[[dict[str, list], int, Callable[[int], object]], pa.Table],
        ready: Callable[[torch.device], AbstractContextManager],
        title: str,
    ) -> None:
        """Computes and writes the missing shards. Each process takes its share.

        Args:
            compute: `(rows, first_row, done)` returns the table of a shard, whose first row is at the position
                `first_row` of the dataset; it calls `done` with the number of finished rows.
            ready: while the context is open, the teacher is on the device.
            title: title of the progress bar.

        Raises:
            OSError: if a shard cannot be written.
        """
        state = self.state
        own = range(state.process_index, self.num_shards, state.num_processes)
        missing = [index for index in own if not self._shard(index).exists()]
        if missing:
            num_rows = sum(len(self._rows_of(index)) for index in missing)
            hidden = not state.is_main_process or are_progress_bars_disabled()
            progress = Progress(title, num_rows, "rows", only_if_long=True, disable=hidden)
            with ready(state.device), progress:
                for index in missing:
                    numbers = self._rows_of(index)
                    self._write(compute(self.dataset.select(numbers)[:], numbers.start, progress.update), index)
        state.wait_for_everyone()

    def load(self) -> Dataset:
        """Loads all shards, in the order of the rows.

        Raises:
            ValueError: if shards are missing.
        """
        shards = [self._shard(index) for index in range(self.num_shards)]
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}: call "
                f"{self.function} again, with the same dataset on all processes."
            )
        return concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])

    def _write(self, table: pa.Table, index: int) -> None:
        unfinished = self.folder / f"unfinished-{index:05}-{os.getpid()}"
        try:
            with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            unfinished.replace(self._shard(index))
        except OSError as error:
            raise OSError(
                f"The {self.content} could not be written to {self.folder} ({error}). Finished shards are kept: "
                f"once there is room, call {self.function} again to continue, or choose another output_dir."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05}-of-{self.num_shards:05}.arrow"

    def _rows_of(self, index: int) -> range:
        start = index * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, len(self.dataset)))
