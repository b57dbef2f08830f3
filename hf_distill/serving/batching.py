"""Texts that wait for a worker: how many may, in which batches they go, and when the next one is refused."""

import asyncio
import math
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from hf_distill.serving.limits import Limits

LATEST = 0.05
"""How much a full batch counts in what is learned of the speed; smaller ones count less, as they tell less.

It is little, as a queue fills up to the highest speed that is learned while it is full, and is read at the mean speed.
"""
RESERVE = 0.2
"""Share of the longest wait that is kept for a speed that falls meanwhile."""
KEPT = 0.99
"""How much of what was seen of characters and tokens still counts after another text."""
FIRST_GUESS: tuple[float, float] = 300, 1000
"""Tokens and characters, as in English with WordPiece."""


@dataclass(eq=False)
class QueuedText:
    """A text that waits.

    Attributes:
        text: it.
        top_k: how many answers are wanted.
        answer: what the worker says of it.
        arrived, taken, answered: when it came, was given to a worker, and was answered, in seconds on the clock of
            `time.perf_counter`.
        tokens: that the model will probably read of it; the queue guesses.
    """

    text: str
    top_k: int
    answer: asyncio.Future
    arrived: float = field(default_factory=time.perf_counter)
    taken: float = 0.0
    answered: float = 0.0
    tokens: int = 0


class OverloadedError(Exception):
    """There is no room.

    Attributes:
        retry_after: seconds until there should be.
    """

    def __init__(self, retry_after: float):
        super().__init__(f"Too many texts are waiting: try again in {math.ceil(retry_after)} s.")
        self.retry_after = math.ceil(retry_after)


class Queue:
    """Texts in the order of their arrival, for any number of workers.

    An idle worker takes what is there, at once: under load batches grow while the workers are busy, and without load
    nobody waits for company. (`limits.max_delay` lets it wait for some all the same.) It leaves their share to the
    other workers, and takes no more than `limits.max_batch_tokens`.

    A request is refused, as a whole, if its texts do not fit into `limits.max_queue`, or if others wait and
    `expected_wait` is longer than `limits.max_wait` or `limits.timeout`, less a reserve.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.texts: deque[QueuedText] = deque()
        self.tokens = 0
        self.tokens_in_hand = 0
        self.workers = 0
        self._arrived = asyncio.Event()
        self._seen_tokens, self._seen_characters = FIRST_GUESS
        self.model_is(sys.maxsize, math.inf)

    def model_is(self, max_length: int, tokens_per_second: float) -> None:
        """Tells how many tokens the model reads of a text, and how fast one worker was when it warmed up."""
        self.max_length, self.tokens_per_second = max_length, tokens_per_second

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def expected_wait(self) -> float:
        """Seconds until a short text that comes now is answered, at the speed of recent batches.

        The batches that the workers have may have just begun, and the one that it will be in may take as long again.
        """
        return (2 * self.tokens_in_hand + self.tokens) / (self.tokens_per_second * max(1, self.workers))

    def check_room(self, num_texts: int = 1) -> None:
        """Raises `OverloadedError` if so many more texts would be refused."""
        longest = (1 - RESERVE) * min(self.limits.max_wait, self.limits.timeout)
        is_late = len(self.texts) > 0 and self.expected_wait > longest
        if is_late or len(self.texts) + num_texts > self.limits.max_queue:
            raise OverloadedError(max(1.0, self.expected_wait))

    def put(self, texts: list[QueuedText]) -> None:
        """Raises `OverloadedError`, in which case none of them waits."""
        self.check_room(len(texts))
        per_character = self._seen_tokens / self._seen_characters
        for text in texts:
            text.tokens = min(self.max_length, math.ceil(len(text.text) * per_character))  # at least 1
            self.tokens += text.tokens
        self.texts.extend(texts)
        self._arrived.set()

    async def take(self) -> list[QueuedText]:
        """The next batch, once there is one; those whose client has gone are left out. `finish` ends it."""
        while True:
            while not self.texts:
                self._arrived.clear()
                await self._arrived.wait()
            await self._company()
            if batch := self._pop():
                self.tokens_in_hand += sum(text.tokens for text in batch)
                return batch

    def finish(self, batch: list[QueuedText]) -> None:
        """Tells that a worker does not have a batch any more, whatever became of it."""
        self.tokens_in_hand -= sum(text.tokens for text in batch)

    def learn(self, batch: list[QueuedText], tokens: list[int], seconds: float) -> None:
        """Tells how many tokens the texts of a batch had, and how long a worker took for them."""
        for text, own in zip(batch, tokens, strict=True):
            if 0 < own < self.max_length:  # of one that was cut it is not known
                self._seen_tokens = KEPT * self._seen_tokens + own
                self._seen_characters = KEPT * self._seen_characters + len(text.text)
        weight = LATEST * min(1.0, sum(tokens) / self.limits.max_batch_tokens)
        if weight > 0:  # the mean is of seconds per token, as it is those that add up to a wait
            self.tokens_per_second = 1 / ((1 - weight) / self.tokens_per_second + weight * seconds / sum(tokens))

    async def _company(self) -> None:
        """Waits for more texts, unless the first has waited long enough or a batch is full."""
        while self.texts and self.tokens < self.limits.max_batch_tokens:
            left = self.texts[0].arrived + self.limits.max_delay - time.perf_counter()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _pop(self) -> list[QueuedText]:
        share = math.ceil(len(self.texts) / max(1, self.workers))
        batch: list[QueuedText] = []
        tokens = 0
        while self.texts and len(batch) < share:
            text = self.texts[0]
            if batch and tokens + text.tokens > self.limits.max_batch_tokens:
                break
            self.texts.popleft()
            self.tokens -= text.tokens
            if not text.answer.done():
                batch.append(text)
                tokens += text.tokens
        return batch
