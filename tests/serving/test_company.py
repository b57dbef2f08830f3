"""The answer for a text does not depend on other requests at the same time."""

import asyncio
import json

import pytest

from hf_distill import export_model, load_predictor
from recipes.benchmarks.http_load import Load
from tests.conftest import make_texts
from tests.serving.running import RunningService

CLIENTS = 32


def answers_under_load(service, bodies):
    """The answer to each body when many clients ask at once."""
    answers = {}

    async def run():
        load = Load("127.0.0.1", service.port, "/predict", bodies)

        def keep(number, answer):
            assert answer.status == 200, answer
            answers[number] = json.loads(answer.body)

        await load.closed_loop(CLIENTS, 60, len(bodies), keep)
        load.close()

    asyncio.run(run())
    return [answers[number] for number in range(len(bodies))]


def mixed_bodies(num_bodies):
    """Bodies with one text or several, short or truncated, with and without scores."""
    texts = make_texts(3 * num_bodies, longest=50)
    bodies = []
    for number in range(num_bodies):
        own = texts[3 * number : 3 * number + 1 + number % 3]
        body = {"text": own[0]} if number % 3 == 0 else {"texts": own}
        bodies.append(body | ({"top_k": 2} if number % 5 == 0 else {}))
    return bodies


def alone(predictor, body):
    """The predictor's answer for each text of a body, run alone."""
    texts = [body["text"]] if "text" in body else body["texts"]
    answers = []
    for text in texts:
        (scores,) = predictor.predict([text], top_k=None)
        (encoding,) = predictor.encoder.encode([text])
        answer = scores[0] | ({"scores": scores} if "top_k" in body else {})
        answers.append(answer | ({"truncated": True} if encoding.overflowing else {}))
    return answers[0] if "text" in body else answers


def test_int8_to_the_last_bit(service, int8):
    bodies = mixed_bodies(1500)
    answers = answers_under_load(service, bodies)
    predictor = load_predictor(int8, threads=1)
    assert answers == [alone(predictor, body) for body in bodies]
    assert service.metric("hf_distill_batch_texts_count") < service.metric("hf_distill_batch_texts_sum")


def test_batches_that_are_padded(student, tmp_path):
    """In other formats, a batch is run together."""
    folder = export_model(student, tmp_path / "onnx", "onnx", texts=make_texts(6)).folder
    bodies = [{"text": text, "top_k": 2} for text in make_texts(500, longest=50)]
    with RunningService(tmp_path, folder, "--workers", "1") as service:
        answers = answers_under_load(service, bodies)
        assert service.metric("hf_distill_batch_texts_count") < 250
    predictor = load_predictor(folder, threads=1)
    for answer, body in zip(answers, bodies, strict=True):
        expected = alone(predictor, body)
        assert answer["label"] == expected["label"]
        assert [own["score"] for own in answer["scores"]] == pytest.approx(
            [own["score"] for own in expected["scores"]], abs=1e-5
        )
