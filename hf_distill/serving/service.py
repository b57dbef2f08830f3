"""One model behind a queue: worker processes that load it, and are replaced when they die."""

import asyncio
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.serving.batching import Queue, QueuedText
from hf_distill.serving.limits import Limits
from hf_distill.serving.messages import encode_message, receive_message
from hf_distill.serving.metrics import Metrics
from hf_distill.serving.model_info import ModelInfo

if TYPE_CHECKING:
    from hf_distill.deployment.text_encoder import TextInput

logger = logging.getLogger(__name__)

RESTART_DELAYS = (0, 0.5, 1, 2, 5, 10)
"""Seconds before a worker is started, by the number of failed starts before; the last value for all further ones."""


class WorkerLostError(Exception):
    """The worker process with a text died, or took too long and was killed."""


class ModelFailedError(Exception):
    """The model raised an error, which is in the log of the service."""


@dataclass(frozen=True)
class Answered:
    """The answers for the texts of one request.

    Attributes:
        entries: one answer per text, from `worker.answer`.
        queued: longest time in the queue, in seconds.
        modelled: longest time in a worker, in seconds.
    """

    entries: list[dict]
    queued: float
    modelled: float


class Service:
    """A model that predicts in worker processes.

    Args:
        role: its name in metrics and logs, such as `"student"`.
        model: folder or Hub name.
        format: format to load, as in `load_predictor`.
        num_workers: number of processes, each with its own copy of the model.
        threads: threads per process.
        limits: limits of the service.
        metrics: metrics of the service.

    Attributes:
        headers: headers of each answer, which identify the model. Empty until `start` has loaded it.
        info: describes the model. None until `start` has loaded it.
        queue: queue of waiting texts.
    """

    def __init__(
        self, role: str, model: str, format: str, num_workers: int, threads: int, limits: Limits, metrics: Metrics
    ):
        self.role, self.limits, self.metrics = role, limits, metrics
        self.command = [sys.executable, "-m", "hf_distill.serving.worker", model, format, str(threads)]
        self.num_workers = num_workers
        self.queue = Queue(limits)
        self.headers: dict[str, str] = {}
        self.info: ModelInfo | None = None
        self._tasks: list[asyncio.Task] = []
        metrics.queue.labels(role).set_function(lambda: len(self.queue))
        metrics.workers.labels(role).set_function(lambda: self.queue.workers)

    @property
    def is_ready(self) -> bool:
        return self.queue.workers > 0

    async def start(self) -> None:
        """Loads the model in one worker, then in the others.

        Raises:
            ValueError: if the model cannot be loaded or served.
        """
        process, info = await self._spawn()
        self.queue.model_is(info.max_length, info.tokens_per_second)
        self.headers, self.info = info.headers(), info
        self.metrics.info.labels(self.role, info.name, info.revision, info.format).set(1)
        self._tasks = [asyncio.create_task(self._keep_working(process))]
        self._tasks += [asyncio.create_task(self._keep_working(None)) for _ in range(self.num_workers - 1)]

    async def stop(self) -> None:
        """Ends the workers. Their current batches are lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def predict(self, texts: "Sequence[TextInput | dict[str, str]]", top_k: int) -> Answered:
        """Predicts for the texts, pairs of texts or files of one request.

        Raises:
            OverloadedError: if the queue has no room for them.
            WorkerLostError: if their worker died.
            ModelFailedError: if the model failed.
            TimeoutError: if they were not answered in time.
        """
        new_future = asyncio.get_running_loop().create_future
        waiting = [QueuedText(text, top_k, new_future()) for text in texts]
        self.queue.put(waiting)
        async with asyncio.timeout(self.limits.timeout):
            entries = await asyncio.gather(*(text.answer for text in waiting))
        return Answered(
            entries=entries,
            queued=max(text.taken - text.arrived for text in waiting),
            modelled=max(text.answered - text.taken for text in waiting),
        )

    async def _spawn(self) -> tuple[Process, ModelInfo]:
        process = await asyncio.create_subprocess_exec(*self.command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        assert process.stdout is not None  # it is a pipe
        try:
            hello = await receive_message(process.stdout)
        except asyncio.IncompleteReadError:
            raise ValueError(
                f"The process that loads the {self.role} ended with exit code {await process.wait()}: see its output "
                f"above. Code -9 usually means too little memory; try fewer --workers."
            ) from None
        except asyncio.CancelledError:
            if process.returncode is None:
                process.kill()
            raise
        if "error" in hello:
            raise ValueError(hello["error"])
        return process, ModelInfo(**hello)

    async def _keep_working(self, process: Process | None) -> None:
        """Keeps one worker process running, and replaces it when it dies."""
        failures = 0
        while True:
            try:
                if process is None:
                    process, _ = await self._spawn()
                failures = 0
                await self._work_until_it_dies(process)
                logger.error("A worker of the %s died (exit code %s); restarting it", self.role, process.returncode)
            except ValueError as error:
                failures += 1
                logger.error("A worker of the %s could not be started: %s", self.role, error)
            process = None
            self.metrics.restarts.labels(self.role).inc()
            await asyncio.sleep(RESTART_DELAYS[min(failures, len(RESTART_DELAYS) - 1)])

    async def _work_until_it_dies(self, process: Process) -> None:
        working = asyncio.create_task(self._work(process))
        try:
            await process.wait()
        finally:
            working.cancel()
            await asyncio.wait({working})
            await process.wait()

    async def _work(self, process: Process) -> None:
        """Sends batch after batch to a worker. Kills it at the end, or if it does not answer."""
        self.queue.workers += 1
        try:
            can_go_on = True
            while can_go_on:
                batch = await self.queue.take()
                try:
                    can_go_on = await self._answer(process, batch)
                finally:  # also runs if the process died and this task was cancelled
                    self.queue.finish(batch)
                    for text in batch:
                        if not text.answer.done():
                            text.answer.set_exception(WorkerLostError())
        finally:
            self.queue.workers -= 1
            if process.returncode is None:
                process.kill()

    async def _answer(self, process: Process, batch: list[QueuedText]) -> bool:
        """Lets a worker answer a batch. Returns False if the worker is lost."""
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        taken = time.perf_counter()
        request = {"texts": [text.text for text in batch], "top_k": max(text.top_k for text in batch)}
        try:
            async with asyncio.timeout(self.limits.timeout):
                process.stdin.write(encode_message(request))
                reply = await receive_message(process.stdout)
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return False
        answered = time.perf_counter()
        if reply["answers"] is not None:
            tokens = [answer["tokens"] for answer in reply["answers"]]
            self.queue.learn(batch, tokens, answered - taken)
            self.metrics.batch_texts.observe(len(batch))
            self.metrics.batch_tokens.observe(sum(tokens))
        for number, text in enumerate(batch):
            text.taken, text.answered = taken, answered
            if text.answer.done():  # its client has gone
                continue
            if reply["answers"] is None:
                text.answer.set_exception(ModelFailedError())
            else:
                text.answer.set_result(reply["answers"][number])
        return True
