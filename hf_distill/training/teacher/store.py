"""Stores a teacher's targets in shards."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_distill.training.teacher.columns import LOG_TAIL, SOURCE, Source
from hf_distill.training.teacher.mass import StoredMass
from hf_distill.training.teacher.reader import TargetReader, Targets
from hf_distill.training.teacher.shards import MOST_SHARDS, ShardStore

ROWS_PER_SHARD = 1024
"""The minimum if a row has one target. With targets per token, a quarter: a whole shard is held in memory."""


class TargetStore(ShardStore):
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
        self.source = source
        manifest: dict[str, dict[str, object]] = {
            "teacher": {"name": source.teacher, "fingerprint": source.fingerprint, "dtype": source.dtype}
            | {"head_spec": asdict(source.head_spec)},
            "tokenizer": {"vocabulary": source.vocabulary, **reading},
            "dataset": {"fingerprint": dataset._fingerprint, "rows": len(dataset)},
            "options": {name: getattr(source, name) for name in ("hidden_states", "top_k", "temperature")}
            | ({} if source.embedding_dtype is None else {"embedding_dtype": source.embedding_dtype})
            | ({} if source.num_samples is None else {"num_samples": source.num_samples})
            | ({"separate_documents": True} if source.separate_documents else {}),
        }
        if source.is_of_some_tokens:
            manifest["options"]["dtypes"] = {name: source.dtype_of(name) for name in source.columns}
        rows_per_shard = max(ROWS_PER_SHARD, -(-len(dataset) // MOST_SHARDS))
        if source.has_targets_per_token or dataset.format["type"] == "custom":  # decoded images are large too
            rows_per_shard = ROWS_PER_SHARD // 4
        super().__init__(folder, dataset, manifest, rows_per_shard)

    def fill(self, reader: TargetReader, mass: StoredMass | None = None) -> None:
        """Computes and writes the missing shards. Each process takes its share.

        Args:
            reader: computes the targets.
            mass: checks the probability of the stored tokens before a shard is written.

        Raises:
            OSError: if a shard cannot be written.
            ValueError: if the stored tokens hold too little probability.
        """

        def compute(rows: dict[str, list], first_row: int, done: Callable[[int], object]) -> pa.Table:
            targets = reader(rows, first_row, done)
            if mass is not None:
                mass.add(targets[LOG_TAIL])
                mass.check()
            return self._table(targets)

        self.fill_shards(compute, reader.ready, "Reading with the teacher")

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
