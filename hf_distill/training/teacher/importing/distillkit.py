"""Decodes the compressed log-probabilities that DistillKit writes to Parquet.

Reference: Goddard and Atkins, 2024, DistillKit, https://github.com/arcee-ai/DistillKit
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

CONFIG_FILE = "compression_config.yaml"
"""The file that DistillKit writes next to the targets."""

SPECIAL_TERMS = ("sqrt", "exp")
"""Terms of the polynomial that are not powers."""


class Decompressor:
    """Decodes the columns `compressed_logprobs` and `bytepacked_indices`.

    The k log-probabilities of a token are sorted. The first `exact_k` are numbers of `exact_dtype`. The others are a
    polynomial of their rank, with coefficients in `term_dtype`, plus residuals of a few bits each. With
    `delta_encoding`, all are differences from the one before. Token ids have `ceil(log2(d))` bits each.

    Args:
        config: DistillKit's `logprob_compressor`: a mapping, or a YAML file.

    Raises:
        ValueError: if the config lacks a value.
    """

    def __init__(self, config: Mapping[str, Any] | str | os.PathLike):
        read = config if isinstance(config, Mapping) else yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        self._set(read.get("logprob_compressor", read) if isinstance(read, Mapping) else {})

    def _set(self, config: Mapping[str, Any]) -> None:
        if missing := [name for name in ("d", "k", "exact_k") if name not in config]:
            raise ValueError(
                f"compression lacks {', '.join(missing)}: pass the logprob_compressor config that DistillKit wrote the "
                f"targets with, such as its {CONFIG_FILE}."
            )
        self.top_k: int = config["k"]
        self.exact_k: int = config["exact_k"]
        self.exact_dtype = getattr(torch, config.get("exact_dtype") or "float32")
        self.terms = config.get("polynomial_terms") or []
        self.term_dtype = getattr(torch, config.get("term_dtype") or "float32")
        self.bins = config.get("residual_bins") or []
        self.delta_encoding = config.get("delta_encoding", True)
        self.id_bits = math.ceil(math.log2(config["d"]))
        steps = self.top_k - self.exact_k
        ranks = torch.linspace(0, 1, steps) if config.get("normalize_t") else torch.arange(steps)
        ranks = ranks.to(self.term_dtype)
        self.powers = [
            getattr(torch, term)(ranks) if term in SPECIAL_TERMS else ranks ** int(term) for term in self.terms
        ]

    def __call__(
        self, compressed: Sequence[Sequence[int]], packed_ids: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the tokens of a row.

        Args:
            compressed: `[tokens, bytes]`.
            packed_ids: `[tokens, bytes]`.

        Returns:
            Token ids `[tokens, k]` and log-probabilities `[tokens, k]`.

        Raises:
            ValueError: if the number of bytes does not fit the config.
        """
        if not len(compressed):
            return np.zeros((0, self.top_k), dtype=np.int64), np.zeros((0, self.top_k))
        bytes_ = np.array(compressed, dtype=np.uint8)
        self._check_size("compressed_logprobs", bytes_.shape[1], self._num_bytes)
        exact, bytes_ = _numbers(bytes_, self.exact_k, self.exact_dtype)
        coefficients, bytes_ = _numbers(bytes_, len(self.terms), self.term_dtype)
        rest = self._polynomial(coefficients)
        start = 0
        for own in self.bins:
            num_values, bits = own["num_elements"], own["element_bits"]
            scale, bytes_ = _numbers(bytes_, 1, getattr(torch, own["scale_dtype"]))
            num_bytes = -(-num_values * bits // 8)
            values = _unpack(bytes_[:, :num_bytes], num_values, bits)
            centred = 2 * values - 1 if bits == 1 else values - 2 ** (bits - 1)
            rest[:, start : start + num_values] += centred * scale
            bytes_, start = bytes_[:, num_bytes:], start + num_values
        log_probs = np.concatenate([exact, rest], axis=1)
        if self.delta_encoding:
            log_probs = log_probs.cumsum(1)
        packed = np.array(packed_ids, dtype=np.uint8)
        self._check_size("bytepacked_indices", packed.shape[1], -(-self.top_k * self.id_bits // 8))
        return _unpack(packed, self.top_k, self.id_bits), log_probs

    def _polynomial(self, coefficients: np.ndarray) -> np.ndarray:
        """`[tokens, k - exact_k]`, computed in `term_dtype`, as the residuals were."""
        values = torch.zeros(len(coefficients), self.top_k - self.exact_k, dtype=self.term_dtype)
        for coefficient, power in zip(torch.from_numpy(coefficients).to(self.term_dtype).T, self.powers, strict=True):
            values += coefficient.unsqueeze(1) * power
        return values.double().numpy()

    @property
    def _num_bytes(self) -> int:
        bins = sum(
            getattr(torch, own["scale_dtype"]).itemsize + -(-own["num_elements"] * own["element_bits"] // 8)
            for own in self.bins
        )
        return self.exact_k * self.exact_dtype.itemsize + len(self.terms) * self.term_dtype.itemsize + bins

    def _check_size(self, column: str, given: int, expected: int) -> None:
        if given != expected:
            raise ValueError(
                f"{column} has {given} bytes per token, but compression describes {expected}: pass the config that the "
                f"targets were written with."
            )


def _numbers(bytes_: np.ndarray, num_values: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Splits numbers of a dtype from the front of `[tokens, bytes]`."""
    size = num_values * dtype.itemsize
    front = torch.from_numpy(np.ascontiguousarray(bytes_[:, :size]))
    if not size:
        return np.zeros((len(bytes_), 0)), bytes_
    return front.view(dtype).double().numpy(), bytes_[:, size:]


def _unpack(bytes_: np.ndarray, num_values: int, bits: int) -> np.ndarray:
    """Unpacks integers of some bits each, highest bit first, from `[tokens, bytes]`."""
    stream = np.unpackbits(np.ascontiguousarray(bytes_), axis=1)[:, : num_values * bits]
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    return stream.reshape(len(bytes_), num_values, bits).astype(np.int64) @ weights
