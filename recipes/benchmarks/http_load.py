"""Generates load for an HTTP service on this machine: a closed loop of clients, or an open loop at a fixed rate.

`python -m recipes.benchmarks.http_load` is the second process of `serve_load`. It reads `{"address": [host, port],
"path": ..., "bodies": [...], "phases": [...]}` from standard input and prints the result of each phase as JSON. A phase
is `{"clients": n, "seconds": s}` or `{"rate": requests per second, "seconds": s}`. Time and connections are limited.

In a closed loop, each client waits for its answer, so a slow service gets fewer requests. In an open loop, requests
arrive at a fixed rate, and latency counts from the time when a request was due.
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_CONNECTIONS = 8000
TIMEOUT = 40.0
"""Seconds after which a client gives up. Longer than the timeout of `hf-distill serve`."""

TIMED_OUT, CLOSED, NOT_SENT = "timed out", "closed without an answer", "no connection left"


class Answer(NamedTuple):
    """The outcome of a request.

    Attributes:
        status: HTTP status, or the reason why there was no answer.
        body: body of the answer.
        retry_after: seconds to wait before the same request, from the header of a refusal.
    """

    status: int | str
    body: bytes = b""
    retry_after: float | None = None


OnAnswer = Callable[[int, Answer], None]
"""Called with the index of the body that was sent, and the final answer."""


class Connection(asyncio.Protocol):
    """One connection with one request at a time. Kept cheap, because it shares the cores with the service."""

    def __init__(self) -> None:
        self.is_open = True
        self._received = b""
        self._answer: asyncio.Future | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._finish(Answer(CLOSED))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        head = head.lower() + b"\r\n"
        length = int(_header(head, b"content-length"))
        if len(body) < length:
            return
        self._received = b""
        if b"connection: close\r\n" in head:
            self.close()
        status, retry_after = int(head[9:12]), _header(head, b"retry-after")
        self._finish(Answer(status, body, float(retry_after) if status == 503 and retry_after else None))

    def ask(self, request: bytes) -> asyncio.Future:
        """Sends a request. The future's result is an `Answer`."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def _finish(self, answer: Answer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


def _header(head: bytes, name: bytes) -> bytes:
    return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()


@dataclass
class Outcome:
    """The result of a phase.

    Attributes:
        seconds: duration.
        statuses: number of answers by status, or by reason for no answer.
        latencies: seconds from due time to answer, for requests with status 200.
    """

    seconds: float = 0.0
    statuses: Counter = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Requests per second with status 200, and their latency in milliseconds."""
        ordered = sorted(self.latencies) or [0.0]
        quantiles = {f"p{q}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 95, 99)}
        return {
            "seconds": self.seconds,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "per_second": len(self.latencies) / self.seconds,
            "latency_ms": {**quantiles, "highest": 1000 * ordered[-1]},
        }


class Load:
    """Sends requests to one path of a service, over persistent connections.

    Args:
        host: address of this machine.
        port: port of the service.
        path: path to request.
        bodies: bodies sent in turn, as JSON.
        headers: additional headers.

    Raises:
        ValueError: if the host is not this machine.
    """

    def __init__(self, host: str, port: int, path: str, bodies: Sequence[object], headers: str = ""):
        if host not in LOOPBACK:
            raise ValueError(f"{host} is not this machine: load is only sent to {', '.join(LOOPBACK)}.")
        self.host, self.port = host, port
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{headers}Content-Length: "
        encoded = [json.dumps(body).encode() for body in bodies]
        self.requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in encoded]
        self._idle: list[Connection] = []
        self._num_connections = 0

    async def closed_loop(
        self,
        clients: int,
        seconds: float,
        num_requests: int | None = None,
        on_answer: OnAnswer | None = None,
        patience: float = 0.0,
    ) -> Outcome:
        """A closed loop: each client sends its next request after its answer, up to a time or a number of requests.

        A client that gets status 503 tries again after `Retry-After` seconds, for up to `patience` seconds.
        """
        outcome = Outcome()
        started = time.perf_counter()
        numbers = iter(range(num_requests or sys.maxsize))

        async def client() -> None:
            for number in numbers:
                due = time.perf_counter()
                if due - started > seconds:
                    return
                answer = await self._ask(number, due, outcome)
                while answer.retry_after is not None and time.perf_counter() + answer.retry_after < due + patience:
                    await asyncio.sleep(answer.retry_after)
                    answer = await self._ask(number, due, outcome)
                if on_answer is not None:
                    on_answer(number % len(self.requests), answer)

        await asyncio.gather(*(client() for _ in range(clients)))
        outcome.seconds = time.perf_counter() - started
        return outcome

    async def open_loop(self, rate: float, seconds: float) -> Outcome:
        """An open loop: requests arrive at random times, at a mean rate per second (a Poisson process)."""
        outcome = Outcome()
        chance = random.Random(0)
        started = due = time.perf_counter()
        asked: set[asyncio.Task] = set()
        number = 0
        while due - started < seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._ask(number, due, outcome))
            asked.add(task)
            task.add_done_callback(asked.discard)
            due += chance.expovariate(rate)
            number += 1
        outcome.seconds = time.perf_counter() - started
        await asyncio.gather(*asked)
        return outcome

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _ask(self, number: int, due: float, outcome: Outcome) -> Answer:
        connection = await self._connect()
        if connection is None:
            answer = Answer(NOT_SENT)
        else:
            answer = await self._ask_on(connection, self.requests[number % len(self.requests)])
        outcome.statuses[answer.status] += 1
        if answer.status == 200:
            outcome.latencies.append(time.perf_counter() - due)
        return answer

    async def _ask_on(self, connection: Connection, request: bytes) -> Answer:
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await connection.ask(request)
        except TimeoutError:
            answer = Answer(TIMED_OUT)
            connection.close()
        self._put_back(connection)
        return answer

    async def _connect(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._num_connections -= 1
        if self._num_connections == MAX_CONNECTIONS:
            return None
        self._num_connections += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
        except OSError:
            self._num_connections -= 1
            return None
        return connection

    def _put_back(self, connection: Connection) -> None:
        if connection.is_open:
            self._idle.append(connection)
        else:
            self._num_connections -= 1


async def run_phases(load: Load, phases: Sequence[dict[str, float]]) -> list[dict[str, object]]:
    outcomes = []
    for phase in phases:
        if "rate" in phase:
            outcome = await load.open_loop(phase["rate"], phase["seconds"])
        else:
            outcome = await load.closed_loop(phase["clients"], phase["seconds"])
        outcomes.append(outcome.summary())
    load.close()
    return outcomes


def main() -> None:
    asked = json.load(sys.stdin)
    _allow_connections()
    load = Load(*asked["address"], asked["path"], asked["bodies"])
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        json.dump(runner.run(run_phases(load, asked["phases"])), sys.stdout)


def _allow_connections() -> None:
    """Raises the limit on open files, because each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_CONNECTIONS + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
