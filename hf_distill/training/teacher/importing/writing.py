"""Writes imported targets to the cache of `datasets`. A file is written completely or not at all."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from hf_distill.training.teacher.columns import SOURCE, Source

Row = Mapping[str, np.ndarray]
"""For each column, the flat array of a row."""


def write(rows: Iterable[Row], dtypes: Mapping[str, str]) -> tuple[Path, str]:
    """Writes the targets of all rows.

    Args:
        rows: one flat array per column for each row.
        dtypes: the dtype of each column.

    Returns:
        The file, and a hash of its targets.

    Raises:
        OSError: if the file cannot be written.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE, "teacher_targets")
    unfinished = folder / f"unfinished-import-{os.getpid()}"
    schema = Features({name: List(Value(dtype)) for name, dtype in dtypes.items()}).arrow_schema
    digest = hashlib.sha256(" ".join(schema.names).encode())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            rows = iter(rows)
            while part := list(islice(rows, 100)):  # Arrow lists have 32-bit offsets
                arrays = [_list_array([row[name] for row in part], digest) for name in schema.names]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        fingerprint = digest.hexdigest()[:16]
        finished = folder / f"imported-{fingerprint}.arrow"
        if not finished.exists():
            unfinished.replace(finished)
    except OSError as error:
        raise OSError(f"The targets could not be written to {folder} ({error}): set HF_DATASETS_CACHE.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return finished, fingerprint


def combined(fingerprints: Iterable[str]) -> str:
    """One hash for the targets of several splits; that of a single split as it is."""
    first, *others = fingerprints
    return hashlib.sha256(" ".join([first, *others]).encode()).hexdigest()[:16] if others else first


def load(file: Path, source: Source) -> Dataset:
    """Loads the targets that `write` wrote, with the column `teacher_source`."""
    targets = Dataset.from_file(str(file))
    of_rows = np.zeros(len(targets), dtype=np.int64)
    return targets.add_column(SOURCE, of_rows, feature=source.features[SOURCE])


def _list_array(rows: list[np.ndarray], digest: "hashlib._Hash") -> pa.ListArray:
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + row.tobytes())
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, rows)], dtype=np.int32), np.concatenate(rows))
