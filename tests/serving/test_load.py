"""Services with slow workers: clients that wait are served, and overload is refused."""

import asyncio
import random
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hf_distill.serving import Limits
from hf_distill.serving.app import App
from hf_distill.serving.metrics import Metrics
from hf_distill.serving.server import Server
from hf_distill.serving.service import Service
from recipes.benchmarks.http_load import Load

SLOW_WORKER = Path(__file__).with_name("slow_worker.py")
TOKENS_PER_SECOND = 1500
"""Speed of one worker: about that of DistilBERT in fp32 on a core with AVX2."""


@asynccontextmanager
async def slow_service(tokens_per_second=TOKENS_PER_SECOND, workers=2, **limits):
    """A service whose model reads this many words per second. Its port is in `port`."""
    limits, metrics = Limits(**limits), Metrics()
    service = Service("student", "slow", "auto", workers, 1, limits, metrics)
    service.command = [sys.executable, str(SLOW_WORKER), str(tokens_per_second)]
    server = Server(App({"student": service}, limits, metrics), limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service.port = listener.getsockname()[1]
        running = asyncio.create_task(server.run_with({"student": service}, listener))
        await until(lambda: service.queue.workers == workers)
        yield service
        server.should_exit = server.force_exit = True
        await running


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def words(number):
    return " ".join(["word"] * number)


def statuses_of(bodies, clients, **options):
    """Sends each body once, with this many clients at a time, and returns the answers."""

    async def run():
        async with slow_service(**options) as service:
            load = Load("127.0.0.1", service.port, "/predict", bodies)
            outcome = await load.closed_loop(clients, 60, len(bodies))
            load.close()
            return outcome.statuses

    return asyncio.run(run())


def test_eight_clients_with_20_sentences_each():
    assert statuses_of([{"texts": [words(25)] * 20}] * 8, clients=8) == {200: 8}


def test_32_clients_with_texts_of_1_to_900_words():
    chance = random.Random(0)
    bodies = [{"text": words(round(900 ** chance.random()))} for _ in range(64)]
    assert statuses_of(bodies, clients=32) == {200: 64}


def test_32_clients_with_as_many_texts_as_a_request_may_have():
    most = Limits().max_texts
    assert statuses_of([{"texts": [words(2)] * most}] * 32, clients=32) == {200: 32}


@pytest.mark.parametrize("max_wait", [1.0, 2.0])
def test_twice_what_it_can_do(max_wait):
    """The service refuses requests that would exceed `max_wait`, answers the others in time, and is never idle."""
    per_second, seconds = 50, 4  # two workers, 40 words in a text
    options = {"tokens_per_second": 1000, "workers": 2, "max_batch_tokens": 200, "max_wait": max_wait}

    async def run():
        async with slow_service(**options) as service:
            load = Load("127.0.0.1", service.port, "/predict", [{"text": words(40)}])
            outcome = await load.open_loop(2 * per_second, seconds)
            load.close()
            return outcome

    outcome = asyncio.run(run())
    assert outcome.statuses.keys() == {200, 503}
    assert outcome.summary()["latency_ms"]["p99"] < 1000 * max_wait
    assert outcome.statuses[200] > 0.9 * per_second * seconds
    assert outcome.statuses[503] > 0.5 * per_second * (seconds - max_wait)
