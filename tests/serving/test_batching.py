"""Which texts are batched together and which are refused: by hand, and as properties."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.serving import Limits
from hf_distill.serving.batching import OverloadedError, Queue, QueuedText


def make_texts(sizes):
    return [QueuedText("x" * size, 1, asyncio.get_running_loop().create_future()) for size in sizes]


def make_queue(workers=1, tokens_per_second=1e6, **limits):
    """A queue that estimates one token per character."""
    queue = Queue(Limits(**limits))
    queue.workers = workers
    queue.model_is(1000, tokens_per_second)
    queue._seen_tokens = queue._seen_characters
    return queue


def sizes(batch):
    return [len(text.text) for text in batch]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=64),
    workers=st.integers(1, 5),
    max_batch_tokens=st.integers(1, 100),
)
def test_each_text_once_in_order_and_within_bounds(lengths, workers, max_batch_tokens):
    """A worker takes at most its share. Only a batch of one text may exceed the limit."""

    async def run():
        queue = make_queue(workers, max_batch_tokens=max_batch_tokens)
        queue.put(make_texts(lengths))
        taken = []
        while len(queue):
            waiting = len(queue)
            batch = sizes(await queue.take())
            assert len(batch) <= math.ceil(waiting / workers)
            assert (
                len(batch) == 1 or sum(batch) <= max_batch_tokens
            )  # one token per character, because nothing is learned yet
            taken += batch
        assert taken == lengths
        assert queue.tokens == 0

    asyncio.run(run())


def test_a_pair_counts_as_both_of_its_texts():
    async def run():
        queue = make_queue()
        pair = QueuedText(("x" * 30, "y" * 50), 1, asyncio.get_running_loop().create_future())
        (text,) = make_texts([7])
        queue.put([pair, text])
        assert (pair.tokens, text.tokens) == (80, 7)

    asyncio.run(run())


def test_texts_that_nobody_waits_for_are_left_out():
    async def run():
        queue = make_queue()
        first, second, third = texts = make_texts([1, 2, 3])
        queue.put(texts)
        first.answer.cancel()
        third.answer.cancel()
        assert await queue.take() == [second]
        queue.put(make_texts([4]))
        assert sizes(await queue.take()) == [4]

    asyncio.run(run())


def test_an_idle_worker_does_not_wait_unless_it_should():
    async def run(max_delay):
        queue = make_queue(max_delay=max_delay)
        taking = asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        queue.put(make_texts([1]))
        await asyncio.sleep(0.01)
        queue.put(make_texts([2]))
        return sizes(await taking)

    assert asyncio.run(run(0.0)) == [1]
    assert asyncio.run(run(0.1)) == [1, 2]


def test_a_full_batch_does_not_wait():
    async def run():
        queue = make_queue(max_delay=60, max_batch_tokens=5)
        queue.put(make_texts([3, 3]))
        return sizes(await asyncio.wait_for(queue.take(), 1))

    assert asyncio.run(run()) == [3]


def test_a_full_queue_refuses_a_request_as_a_whole():
    async def run():
        queue = make_queue(max_queue=5, max_texts=5)
        queue.put(make_texts([1, 1, 1]))
        with pytest.raises(OverloadedError, match="Too many texts are waiting: try again in 1 s"):
            queue.put(make_texts([1, 1, 1]))
        assert len(queue) == 3
        queue.put(make_texts([1, 1]))
        with pytest.raises(OverloadedError):
            queue.check_room()

    asyncio.run(run())


def test_who_would_wait_too_long_is_refused():
    """A worker reads 100 tokens per second, so 300 tokens take two workers 1.5 seconds."""

    async def run():
        queue = make_queue(workers=2, tokens_per_second=100, max_wait=1.0)
        queue.put(make_texts([300]))  # the queue was empty
        assert queue.expected_wait == pytest.approx(1.5)
        with pytest.raises(OverloadedError, match="try again in 2 s") as refusal:
            queue.check_room()
        assert refusal.value.retry_after == 2
        queue.workers = 4
        queue.check_room()

    asyncio.run(run())


def test_what_the_workers_have_counts_twice():
    """Tokens in workers count twice: for the current batch and the next. The first in line is always accepted."""

    async def run():
        queue = make_queue(workers=2, tokens_per_second=100, max_wait=1.0)
        queue.put(make_texts([150, 150]))
        first, second = await queue.take(), await queue.take()
        assert queue.expected_wait == pytest.approx(3.0)
        queue.put(make_texts([100]))
        assert queue.expected_wait == pytest.approx(3.5)
        with pytest.raises(OverloadedError):
            queue.check_room()
        queue.finish(first)
        assert queue.expected_wait == pytest.approx(2.0)
        queue.finish(second)
        assert queue.expected_wait == pytest.approx(0.5)
        queue.check_room()

    asyncio.run(run())


def test_a_part_of_the_wait_is_kept_in_reserve():
    async def run():
        queue = make_queue(tokens_per_second=100, max_wait=2)
        queue.put(make_texts([159]))
        queue.check_room()
        queue.put(make_texts([2]))  # 1.61 seconds; 1.6 would be accepted
        with pytest.raises(OverloadedError):
            queue.check_room()

    asyncio.run(run())


def test_who_would_be_answered_too_late_is_refused():
    async def run():
        queue = make_queue(tokens_per_second=100, max_wait=60, timeout=2)
        queue.put(make_texts([150]))
        queue.put(make_texts([100]))
        with pytest.raises(OverloadedError, match="try again in 3 s"):
            queue.check_room()

    asyncio.run(run())


def test_the_speed_is_learned():
    """The queue learns the speed quickly from full batches, and slowly from short texts."""

    async def run(sizes, times):
        queue = make_queue(tokens_per_second=100, max_batch_tokens=100, workers=0)
        for _ in range(times):
            queue.put(make_texts(sizes))
            batch = await queue.take()
            queue.learn(batch, [len(text.text) for text in batch], seconds=sum(sizes) / 500)
        return queue.tokens_per_second

    assert asyncio.run(run([50, 50], 1)) == pytest.approx(1 / (0.95 * 0.010 + 0.05 * 0.002))
    assert asyncio.run(run([5], 1)) == pytest.approx(1 / (0.9975 * 0.010 + 0.0025 * 0.002))
    assert asyncio.run(run([50, 50], 200)) == pytest.approx(500, rel=0.01)


def test_a_speed_that_changes():
    """100 tokens take 0.1 s and 0.3 s in turn, as on a busy machine: 500 tokens per second on average."""

    async def run():
        queue = make_queue(tokens_per_second=500, max_batch_tokens=100)
        speeds = []
        for number in range(400):
            queue.put(make_texts([100]))
            batch = await queue.take()
            queue.learn(batch, [100], seconds=0.3 if number % 2 else 0.1)
            speeds.append(queue.tokens_per_second)
        return sum(speeds[-20:]) / 20

    assert asyncio.run(run()) == pytest.approx(500, rel=0.05)


def test_tokens_are_guessed_from_those_before():
    """Estimates a quarter of the characters, at most the model's limit. Truncated texts are not learned from."""

    async def run():
        queue = make_queue()
        queue.model_is(30, 1e6)
        for _ in range(300):
            queue.put(make_texts([40, 400]))
            batch = [*await queue.take(), *(await queue.take() if len(queue) else [])]
            queue.learn(batch, [10, 30], seconds=1)
        queue.put(new := make_texts([80, 4000]))
        return [text.tokens for text in new]

    assert asyncio.run(run()) == [21, 30]  # the ratio is near 1/4, from above


def test_texts_that_are_all_cut_tell_nothing():
    async def run():
        queue = make_queue()
        queue.model_is(30, 1e6)
        for _ in range(10_000):
            queue.put(make_texts([400]))
            queue.learn(await queue.take(), [30], seconds=1)
        queue.put(new := make_texts([20]))
        return new[0].tokens

    assert asyncio.run(run()) == 20
