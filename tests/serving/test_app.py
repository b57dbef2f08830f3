"""Requests to a service and its answers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill import load_predictor
from hf_distill.serving.model_info import revision_of
from tests.serving.running import RunningService

TOO_LONG = " ".join(["w5"] * 50)
"""A text above the tokenizer's limit of 38 tokens."""


def test_one_text_and_several(service, int8):
    predictor = load_predictor(int8, threads=1)
    (expected,) = predictor.predict(["w5 w6"])
    answer = service.post({"text": "w5 w6"})
    assert answer.status == 200
    assert answer.json == expected
    texts = ["w5 w6", "w7", "w9 w8 w10"]
    assert service.post({"texts": texts}).json == predictor.predict(texts)


def test_all_scores(service, int8):
    (expected,) = load_predictor(int8, threads=1).predict(["w5 w6"], top_k=None)
    answer = service.post({"text": "w5 w6", "top_k": 10}).json
    assert answer == {**expected[0], "scores": expected}
    assert service.post({"texts": ["w5 w6"], "top_k": 1}).json == [{**expected[0], "scores": expected[:1]}]


def test_what_was_not_read_is_said(service):
    cut, whole = service.post({"texts": [TOO_LONG, "w5"]}).json
    assert cut["truncated"] is True
    assert "truncated" not in whole


def test_which_model_answers(service, int8):
    for answer in (service.post({"text": "w5"}), service.post({"text": ""})):
        assert answer.headers["x-model-name"] == "bert-int8"
        assert answer.headers["x-model-revision"] == revision_of(int8)
        assert answer.headers["x-model-format"] == "onnx-int8"
    timing = service.post({"text": "w5"}).headers["server-timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["queue", "model"]
    model = {"path": "/predict", "reads": "text"}
    assert service.get("/models").json["student"] == model | {
        name: value for name, value in answer.headers.items() if name.startswith("x-model")
    }


BAD_BODIES = {
    b"": (400, "Invalid JSON"),
    b'{"text": "w5"': (400, "Invalid JSON"),
    b'{"text": "\xff"}': (400, "Invalid JSON"),
    b'{"text": "\\ud800"}': (400, "Invalid JSON"),
    b"[" * 100_000: (400, "recursion limit exceeded"),
    b'{"text": ' + b"[" * 100 + b"]" * 100 + b"}": (422, "text: Input should be a valid string"),
    b"null": (422, "Input should be an object"),
    b"{}": (422, "text: Field required"),
    b'{"text": null}': (422, "text: Input should be a valid string"),
    b'{"text": 5}': (422, "text: Input should be a valid string"),
    b'{"text": ""}': (422, "text: String should have at least 1 character"),
    b'{"text": " \\n"}': (422, "Text 0: is empty"),
    b'{"texts": []}': (422, "texts: List should have at least 1 item"),
    b'{"texts": "w5"}': (422, "texts: Input should be a valid array"),
    b'{"texts": ["w5", 1]}': (422, "texts.1: Input should be a valid string"),
    b'{"texts": ["w5", " "]}': (422, "Text 1: is empty"),
    b'{"text": "w5", "texts": ["w5"]}': (422, "text: Extra inputs are not permitted"),
    b'{"text": "w5", "top_k": 0}': (422, "top_k: Input should be greater than or equal to 1"),
    b'{"text": "w5", "top_k": 1e400}': (422, "top_k: Input should be"),
    b'{"text": "w5", "top_k": ' + b"9" * 10_000 + b"}": (400, "Invalid JSON: number out of range"),
    b'{"text": "w5", "top_k": "2"}': (422, "top_k: Input should be a valid integer"),
    json.dumps({"texts": ["w5"] * 65}).encode(): (422, "texts: List should have at most 64 items"),
    json.dumps({"text": "w" * 100_001}).encode(): (422, "text: String should have at most 100000 characters"),
    json.dumps({"text": "w" * (1 << 20)}).encode(): (413, "The body is larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize(("body", "expected"), BAD_BODIES.items(), ids=[str(body[:30]) for body in BAD_BODIES])
def test_bad_bodies(service, body, expected):
    status, detail = expected
    answer = service.post(body)
    assert answer.status == status
    assert detail in answer.json["detail"]
    assert len(answer.body) < 400
    assert answer.headers["content-type"] == "application/json"
    assert service.post({"text": "w5"}).status == 200


VALID = b'{"texts": ["w5 w6", "w7 \\u00e9"], "top_k": 2}'


@st.composite
def broken_bodies(draw):
    """Random bytes, or a valid body that is truncated or has some bytes replaced."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=100))
    body = bytearray(VALID[: draw(st.integers(0, len(VALID)))])
    for place in draw(st.lists(st.integers(0, len(VALID) - 1), max_size=4)):
        if place < len(body):
            body[place] = draw(st.integers(0, 255))
    return bytes(body)


@given(broken_bodies())
@settings(max_examples=200)
def test_broken_bodies(service, body):
    """Every body is answered with a prediction or a refusal, never with a failure."""
    answer = service.post(body)
    assert answer.status in (200, 400, 422)
    assert answer.status == 200 or isinstance(answer.json["detail"], str)


def test_what_is_not_json_is_not_read(service):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert service.post(b'{"text": "w5"}', **{"content-type": kind}).status == 415
    assert service.post({"text": "w5"}, **{"content-type": "Application/JSON; charset=utf-8"}).status == 200


def test_other_paths_and_methods(service):
    assert service.get("/nothing").status == 404
    answer = service.get("/predict")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert service.post({"text": "w5"}, "/predict/teacher").status == 404


def test_alive_and_ready(service):
    assert service.get("/health").json == {"status": "alive"}
    assert service.get("/ready").json == {"status": "ready"}


def test_metrics(service):
    before = {name: service.metric(name) for name in ("hf_distill_requests_total", "hf_distill_batch_texts_sum")}
    service.post({"texts": ["w5", "w6", "w7"]})
    service.post({"text": ""})
    page = service.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert service.metric("hf_distill_requests_total") - before["hf_distill_requests_total"] == 2
    assert service.metric("hf_distill_batch_texts_sum") - before["hf_distill_batch_texts_sum"] == 3
    lines = page.body.decode()
    assert 'hf_distill_errors_total{kind="invalid"}' in lines
    assert 'hf_distill_request_seconds_bucket{le="0.5",model="student"}' in lines
    assert 'hf_distill_workers{model="student"} 2.0' in lines
    assert 'hf_distill_queue_texts{model="student"} 0.0' in lines
    assert 'name="bert-int8"' in lines


def test_the_documentation_is_served_from_here(service):
    page = service.get("/docs").body.decode()
    assert "http:" not in page
    assert "https:" not in page
    assert service.get("/static-offline-docs/swagger-ui-bundle.js").status == 200
    paths = service.get("/openapi.json").json["paths"]
    assert {"/predict", "/health", "/ready", "/metrics", "/models"} == set(paths)


def test_the_page_loads_nothing(service):
    answer = service.get("/")
    page = answer.body.decode()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in page.replace("https://github.com", "")
    assert "src=" not in page


def test_no_text_in_the_log(service):
    secret = "confidential"
    service.post({"text": secret})
    service.post({"text": secret, "top_k": 0})
    service.get(f"/predict?text={secret}")
    assert not service.said(secret)


def test_bearer_token(int8, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with RunningService(tmp_path, int8, "--workers", "1", "--token-file", str(tmp_path / "token")) as service:
        for path in ("/health", "/ready", "/", "/docs"):
            assert service.get(path).status == 200
        for wrong in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "Basic s3cret"}, {"authorization": "é"}):
            for answer in (service.post({"text": "w5"}, **wrong), service.get("/metrics", **wrong)):
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json["detail"] == "The bearer token is missing or wrong."
        right = {"authorization": "bearer s3cret"}
        assert service.post({"text": "w5"}, **right).status == 200
        assert service.get("/metrics", **right).status == 200
        assert service.get("/models", **right).status == 200
        assert service.get("/openapi.json").json["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_student_and_teacher(int8, student, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1", "--teacher", str(student)) as service:
        assert service.post({"text": "w5"}).headers["x-model-format"] == "onnx-int8"
        answer = service.post({"text": "w5"}, "/predict/teacher")
        assert answer.headers["x-model-format"] == "pytorch"
        (expected,) = load_predictor(student).predict(["w5"])
        assert answer.json == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-5)}
        assert service.get("/models").json["teacher"]["path"] == "/predict/teacher"


def test_a_model_that_reads_single_texts_does_not_rerank(service):
    answer = service.post({"query": "w5", "documents": ["w6"]}, "/rerank")
    assert answer.status == 404
    assert "The student does not rerank: that needs a model with one score for a pair of texts" in answer.json["detail"]
    assert service.post({"text": "w5", "text_pair": "w6"}).status == 422
