"""Stores a teacher's targets in shards. A shard is written completely or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from datasets.utils import are_progress_bars_disabled

from hf_distill.files import read_json
from hf_distill.progress import Progress
from hf_distill.training.teacher.columns import LOG_TAIL, SOURCE, Source
from hf_distill.training.teacher.mass import StoredMass
from hf_distill.training.teacher.reader import TargetReader, Targets

MANIFEST = "targets.json"
ROWS_PER_SHARD = 1024
"""The minimum if a row has one target. With targets per token, a quarter: a whole shard is held in memory."""
MOST_SHARDS = 1000


class TargetStore:
    """The folder with the targets of one teacher for one dataset.

    Args:
        folder: the folder; None for a folder of its own in the cache of `datasets`.
        dataset: the rows that the teacher reads.
        source: the teacher.
        reading: the tokenizer settings that change how it reads them.

    Raises:
        ValueError: if the folder has other content.
    """

    def __init__(
        self, folder: str | os.PathLike | None, dataset: Dataset, source: Source, reading: Mapping[str, object]
    ):
        self.dataset, self.source = dataset, source
        manifest = {
            "teacher": {"name": source.teacher, "fingerprint": source.fingerprint, "dtype": source.dtype}
            | {"head_spec": asdict(source.head_spec)},
            "tokenizer": {"vocabulary": source.vocabulary, **reading},
            "dataset": {"fingerprint": dataset._fingerprint, "rows": len(dataset)},
            "options": {name: getattr(source, name) for name in ("hidden_states", "top_k", "temperature")},
        }
        if folder is None:
            folder = Path(datasets.config.HF_DATASETS_CACHE, "teacher_targets", Hasher.hash(manifest))
        self.folder = Path(folder)
        self.rows_per_shard = max(ROWS_PER_SHARD, -(-len(dataset) // MOST_SHARDS))
        if source.has_targets_per_token:
            self.rows_per_shard = ROWS_PER_SHARD // 4
        self.num_shards = -(-len(dataset) // self.rows_per_shard)
        self.state = PartialState(cpu=not torch.accelerator.is_available())
        with self.state.main_process_first():
            self._claim(json.loads(json.dumps(manifest)))

    def _claim(self, manifest: dict[str, dict]) -> None:
        """Creates the folder, or checks that its content matches."""
        file = self.folder / MANIFEST
        if not file.exists():
            if self.folder.exists() and any(not other.match(f"{file.stem}.*") for other in self.folder.iterdir()):
                raise ValueError(f"{self.folder} has files that are not targets: choose another output_dir.")
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")  # two trainings may do this at once
            unfinished.write_text(json.dumps(manifest, indent=2) + "\n")
            unfinished.replace(file)
            return
        written = read_json(file)
        if different := [name for name, value in manifest.items() if written.get(name) != value]:
            differences = "; ".join(f"{name} was {written.get(name)} and is {manifest[name]}" for name in different)
            raise ValueError(
                f"{self.folder} has targets of another {' and '.join(different)} ({differences}): choose another "
                f"output_dir, or delete this folder."
            )

    def fill(self, reader: TargetReader, mass: StoredMass | None = None) -> None:
        """Computes and writes the missing shards. Each process takes its share.

        Args:
            reader: computes the targets.
            mass: checks the probability of the stored tokens before a shard is written.

        Raises:
            OSError: if a shard cannot be written.
            ValueError: if the stored tokens hold too little probability.
        """
        state = self.state
        own = range(state.process_index, self.num_shards, state.num_processes)
        missing = [index for index in own if not self._shard(index).exists()]
        if missing:
            num_rows = sum(len(self._rows_of(index)) for index in missing)
            hidden = not state.is_main_process or are_progress_bars_disabled()
            progress = Progress("Reading with the teacher", num_rows, "rows", only_if_long=True, disable=hidden)
            with reader.ready(state.device), progress:
                for index in missing:
                    rows = self.dataset.select(self._rows_of(index))
                    targets = reader(rows[:], progress.update)
                    if mass is not None:
                        mass.add(targets[LOG_TAIL])
                        mass.check()
                    self._write(self._table(targets), index)
        state.wait_for_everyone()

    def load(self) -> Dataset:
        """Loads all targets, in the order of the rows.

        Raises:
            ValueError: if shards are missing.
        """
        shards = [self._shard(index) for index in range(self.num_shards)]
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}: call "
                f"add_teacher_targets again, with the same dataset on all processes."
            )
        return concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])

    def _table(self, targets: Targets) -> pa.Table:
        schema = self.source.features.arrow_schema
        num_rows = len(next(iter(targets.values())))
        batches = []
        for start in range(0, num_rows, 100):  # Arrow lists have 32-bit offsets
            part = {name: rows[start : start + 100] for name, rows in targets.items()}
            columns = {
                name: pa.ListArray.from_arrays(np.cumsum([0, *map(len, rows)], dtype=np.int32), np.concatenate(rows))
                for name, rows in part.items()
            }
            columns[SOURCE] = pa.array(np.zeros(len(next(iter(part.values()))), dtype=np.int64))
            batches.append(pa.record_batch([columns[name] for name in schema.names], schema=schema))
        return pa.Table.from_batches(batches)

    def _write(self, table: pa.Table, index: int) -> None:
        unfinished = self.folder / f"unfinished-{index:05}-{os.getpid()}"
        try:
            with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            unfinished.replace(self._shard(index))
        except OSError as error:
            raise OSError(
                f"The targets could not be written to {self.folder} ({error}). Finished shards are kept: "
                f"once there is room, call add_teacher_targets again to continue, or choose another output_dir."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05}-of-{self.num_shards:05}.arrow"

    def _rows_of(self, index: int) -> range:
        start = index * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, len(self.dataset)))
