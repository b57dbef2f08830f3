"""How much of the teacher's probability the stored top-k tokens hold."""

from collections.abc import Iterable

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from hf_distill.training.teacher.columns import LOG_TAIL, Source

logger = logging.get_logger(__name__)

MIN_MASS = 0.5
"""Default of `min_mass`. With less, most of the teacher's distribution is lost."""

LITTLE_MASS = 0.9
"""Below it, a warning reports the stored share."""


class StoredMass:
    """The probability that the `top_k` stored tokens hold, as a mean over all tokens of the rows.

    Args:
        source: the teacher.
        min_mass: lower limit of the mean, from 0 to 1.
    """

    def __init__(self, source: Source, min_mass: float):
        self.source, self.min_mass = source, min_mass
        self._sum, self._num_tokens = 0.0, 0

    def add(self, log_tails: Iterable[np.ndarray]) -> None:
        """Adds rows to the mean.

        Args:
            log_tails: for each row `[tokens]`, the logarithm of the probability of all tokens that are not stored; NaN
                for tokens without a distribution.
        """
        for log_tail in log_tails:
            values = log_tail[~np.isnan(log_tail)]
            self._sum -= np.expm1(values.astype(np.float64)).sum()
            self._num_tokens += len(values)

    def check(self) -> None:
        """Checks the mean over the rows added until now.

        Raises:
            ValueError: if the mean is less than `min_mass`.
        """
        if self.mean < self.min_mass:
            raise ValueError(
                f"{self}, less than min_mass={self.min_mass}: raise top_k, lower temperature here and in the training "
                f"arguments, or lower min_mass."
            )

    def report(self, targets: Dataset) -> None:
        """Logs the mean over all rows, as a warning if it is low.

        Raises:
            ValueError: if the mean is less than `min_mass`.
        """
        for batch in targets.select_columns(LOG_TAIL).with_format("arrow").iter(batch_size=1000):
            self.add(chunk.flatten().to_numpy() for chunk in batch[LOG_TAIL].chunks)
        self.check()
        if self.mean < LITTLE_MASS:
            more = "import more tokens per position" if self.source.is_imported else "raise top_k, or lower temperature"
            logger.warning(f"{self}. The student learns only the total of the rest: {more}.")
        else:
            logger.info(f"{self}.")

    @property
    def mean(self) -> float:
        """The mean, from 0 to 1."""
        return self._sum / self._num_tokens if self._num_tokens else 1.0

    def __str__(self) -> str:
        return (
            f"The {self.source.top_k} most likely tokens hold {self.mean:.0%} of the teacher's probability "
            f"at temperature {self.source.temperature:g}, as a mean over {self._num_tokens:,} tokens"
        )
