"""The queue of texts that wait for a worker: its limits, its batches, and when it refuses new texts."""

import asyncio
import math
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_distill.serving.limits import Limits

if TYPE_CHECKING:
    from hf_distill.deployment.text_encoder import TextInput

LATEST = 0.05
"""Weight of a full batch in the moving average of the speed; smaller batches say less and count less.

The weight is small, because a queue fills up to the highest speed measured but is emptied at the mean speed.
"""
RESERVE = 0.2
"""Share of the longest wait held back in case the speed falls."""
KEPT = 0.99
"""Weight of the counts of characters and tokens seen so far, after each new text."""
FIRST_GUESS: tuple[float, float] = 300, 1000
"""Tokens and characters before any text is seen: the ratio of English with WordPiece."""


@dataclass(eq=False)
class QueuedText:
    """A waiting text, pair of texts, or file.

    Attributes:
        text: the text, the pair, or the file as `{"base64": ...}`.
        top_k: number of answers wanted.
        answer: future with the worker's answer.
        arrived, taken, answered: times of arrival, of delivery to a worker and of the answer, in seconds of
            `time.perf_counter`.
        tokens: estimated number of tokens that the model will read.
    """

    text: "TextInput | dict[str, str]"
    top_k: int
    answer: asyncio.Future
    arrived: float = field(default_factory=time.perf_counter)
    taken: float = 0.0
    answered: float = 0.0
    tokens: int = 0

    @property
    def num_characters(self) -> int:
        if isinstance(self.text, dict):  # a file: it counts as the most that the model reads
            return sys.maxsize
        return len(self.text) if isinstance(self.text, str) else sum(map(len, self.text))


class OverloadedError(Exception):
    """The queue is full.

    Attributes:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, retry_after: float):
        super().__init__(f"Too many texts are waiting: try again in {math.ceil(retry_after)} s.")
        self.retry_after = math.ceil(retry_after)


class Queue:
    """A first-in, first-out queue of texts for any number of workers.

    An idle worker takes the waiting texts at once. Under load, batches grow while the workers are busy; without load,
    no text waits for others, unless `limits.max_delay` is set. A worker takes at most its share of the queue, and at
    most about `limits.max_batch_tokens` tokens.

    A request is refused as a whole if its texts exceed `limits.max_queue`, or if other texts wait and `expected_wait`
    is longer than `limits.max_wait` or `limits.timeout`, less a reserve.
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
        """Sets the maximum number of tokens per text, and the speed of one worker during warm-up."""
        self.max_length, self.tokens_per_second = max_length, tokens_per_second

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def expected_wait(self) -> float:
        """Seconds until a short text that arrives now is answered, at the speed of recent batches.

        Batches in the workers count twice: they may have just started, and the new text's own batch may take as long.
        """
        return (2 * self.tokens_in_hand + self.tokens) / (self.tokens_per_second * max(1, self.workers))

    def check_room(self, num_texts: int = 1) -> None:
        """Raises `OverloadedError` if `num_texts` more texts would be refused."""
        longest = (1 - RESERVE) * min(self.limits.max_wait, self.limits.timeout)
        is_late = len(self.texts) > 0 and self.expected_wait > longest
        if is_late or len(self.texts) + num_texts > self.limits.max_queue:
            raise OverloadedError(max(1.0, self.expected_wait))

    def put(self, texts: list[QueuedText]) -> None:
        """Adds texts. Raises `OverloadedError` if there is no room; then none of them is added."""
        self.check_room(len(texts))
        per_character = self._seen_tokens / self._seen_characters
        for text in texts:
            text.tokens = min(self.max_length, math.ceil(text.num_characters * per_character))  # at least 1
            self.tokens += text.tokens
        self.texts.extend(texts)
        self._arrived.set()

    async def take(self) -> list[QueuedText]:
        """Waits for the next batch, without texts whose client has gone. Call `finish` when it is done."""
        while True:
            while not self.texts:
                self._arrived.clear()
                await self._arrived.wait()
            await self._company()
            if batch := self._pop():
                self.tokens_in_hand += sum(text.tokens for text in batch)
                return batch

    def finish(self, batch: list[QueuedText]) -> None:
        """Reports that a batch has left its worker, answered or not."""
        self.tokens_in_hand -= sum(text.tokens for text in batch)

    def learn(self, batch: list[QueuedText], tokens: list[int], seconds: float) -> None:
        """Updates the estimates with the token counts of a batch and the seconds that a worker took for it."""
        for text, own in zip(batch, tokens, strict=True):
            if 0 < own < self.max_length:  # the length of a truncated text is unknown
                self._seen_tokens = KEPT * self._seen_tokens + own
                self._seen_characters = KEPT * self._seen_characters + text.num_characters
        weight = LATEST * min(1.0, sum(tokens) / self.limits.max_batch_tokens)
        if weight > 0:  # averages seconds per token, because these add up to a wait
            self.tokens_per_second = 1 / ((1 - weight) / self.tokens_per_second + weight * seconds / sum(tokens))

    async def _company(self) -> None:
        """Waits up to `limits.max_delay` for more texts, or until a batch is full."""
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
