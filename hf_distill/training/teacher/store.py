"""Where a teacher's targets are kept: in shards, each of which is there whole or not at all."""

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
from datasets.utils import tqdm

from hf_distill.files import read_json
from hf_distill.training.teacher.columns import LOG_TAIL, SOURCE, Source
from hf_distill.training.teacher.mass import StoredMass
from hf_distill.training.teacher.reader import TargetReader, Targets

MANIFEST = "targets.json"
ROWS_PER_SHARD = 1024
"""At least, where a row has one target; where each token has one, a quarter of it, which is then all that is held."""
MOST_SHARDS = 1000


class TargetStore:
    """The targets of one data set by one teacher, in a folder.

    Args:
        folder: where to keep them; None for a folder in the cache of `datasets` that nothing else uses.
        dataset: the rows that the teacher reads.
        source: the teacher.
        reading: how it reads them.

    Raises:
        ValueError: if the folder has something else in it.
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
        """Makes the folder, or checks what is in it."""
        file = self.folder / MANIFEST
        if not file.exists():
            if self.folder.exists() and any(not other.match(f"{file.stem}.*") for other in self.folder.iterdir()):
                raise ValueError(f"{self.folder} has something else in it: choose another output_dir for the targets.")
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")  # two trainings may claim it at once
            unfinished.write_text(json.dumps(manifest, indent=2) + "\n")
            unfinished.replace(file)
            return
        written = read_json(file)
        if different := [name for name, value in manifest.items() if written.get(name) != value]:
            differences = "; ".join(f"{name} {written.get(name)}, not {manifest[name]}" for name in different)
            raise ValueError(
                f"{self.folder} has targets of another {' and '.join(different)} ({differences}): choose another "
                f"output_dir, or remove this one."
            )

    def fill(self, reader: TargetReader, mass: StoredMass | None = None) -> None:
        """Has the rows read that nobody has read yet; each process takes its share.

        Args:
            reader: the teacher.
            mass: checks what the likeliest tokens hold, before a shard is written.

        Raises:
            OSError: if a shard cannot be written.
            ValueError: if the likeliest tokens hold too little.
        """
        state = self.state
        own = range(state.process_index, self.num_shards, state.num_processes)
        missing = [index for index in own if not self._shard(index).exists()]
        if missing:
            num_rows = sum(len(self._rows_of(index)) for index in missing)
            bar = tqdm(total=num_rows, desc="Teacher", unit=" rows", disable=not state.is_main_process or None)
            with reader.ready(state.device), bar:
                for index in missing:
                    rows = self.dataset.select(self._rows_of(index))
                    targets = reader(rows[:], bar.update)
                    if mass is not None:
                        mass.add(targets[LOG_TAIL])
                        mass.check()
                    self._write(self._table(targets), index)
        state.wait_for_everyone()

    def load(self) -> Dataset:
        """All targets, in the order of the rows.

        Raises:
            ValueError: if some are missing.
        """
        shards = [self._shard(index) for index in range(self.num_shards)]
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}: call "
                f"add_teacher_targets again, on all processes with the same data set."
            )
        return concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])

    def _table(self, targets: Targets) -> pa.Table:
        schema = self.source.features.arrow_schema
        num_rows = len(next(iter(targets.values())))
        batches = []
        for start in range(0, num_rows, 100):  # an Arrow list's offsets are 32 bits
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
                f"The targets could not be written to {self.folder} ({error}). What is there is kept: call "
                f"add_teacher_targets again, once there is room, or choose another output_dir."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05}-of-{self.num_shards:05}.arrow"

    def _rows_of(self, index: int) -> range:
        start = index * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, len(self.dataset)))
