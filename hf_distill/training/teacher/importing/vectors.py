"""Reads the vectors of texts that another program computed."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_distill.training.scoring.alignment import embedding_spec
from hf_distill.training.teacher.columns import DTYPES, EMBEDDINGS, IMPORTED, SCALE, stored_embeddings
from hf_distill.training.teacher.importing.writing import Row


class VectorReader:
    """Reads the vectors of rows.

    Args:
        dtype: how they are stored, an `EmbeddingDtype`.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.dtypes = {EMBEDDINGS: dtype} | ({SCALE: DTYPES[SCALE]} if dtype == "int8" else {})
        self.width: int | None = None

    def prepare(self, dataset: Dataset, entries: Iterable[Any]) -> None:
        """Does nothing: each row is read by itself."""

    def read(self, dataset: Dataset, entries: Iterable[Any]) -> Iterator[Row]:
        """Reads the vector of each row.

        Args:
            dataset: the rows, which need not be tokenised.
            entries: one list of numbers per row.

        Raises:
            ValueError: if an entry is not a list of finite numbers, is all zeros, or has another width than the first.
        """
        for row, entry in enumerate(entries):
            try:
                vector = np.asarray(entry, dtype=np.float32)
            except (TypeError, ValueError):
                raise ValueError(f"Row {row} has {str(entry)[:60]!r}, not a list of numbers.") from None
            self.width = self.width if self.width is not None else vector.size
            if vector.ndim != 1 or vector.size != self.width or not vector.size:
                raise ValueError(
                    f"Row {row} has a vector of the shape {list(vector.shape)}, and the first one has {self.width} "
                    f"numbers: all vectors need the same width."
                )
            if not np.isfinite(vector).all() or not vector.any():
                raise ValueError(f"Row {row} has a vector that is 0 or not finite.")
            columns = stored_embeddings(torch.from_numpy(vector)[None], self.dtype)
            yield {name: values[0].numpy().astype(self.dtypes[name]) for name, values in columns.items()}

    def description(self) -> dict[str, Any]:
        """The entries of `Source` that depend on the format."""
        spec = embedding_spec(f"{IMPORTED} teacher", self.width)
        options = {"vocabulary": None, "reads_text": True, "top_k": None, "temperature": None}
        return {"head_spec": spec, **options, "embedding_dtype": self.dtype}
