"""A service for an embedding model: `/embed`, and `/v1/embeddings` in the format of OpenAI."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_distill import export_model, load_predictor
from tests.conftest import make_texts
from tests.sentence_models import PROMPTS, make_sentence_model
from tests.serving.running import RunningService
from tests.serving.test_openapi import CONFIG

pytest.importorskip("sentence_transformers")

TEXTS = make_texts(7, longest=20)
LONG = "w5 " * 60
OPENAI = "/v1/embeddings"


@pytest.fixture(scope="module")
def library_model(tmp_path_factory):
    return make_sentence_model(tmp_path_factory.mktemp("model"), dense=12, prompts=PROMPTS)


@pytest.fixture(scope="module")
def embedder(library_model, tmp_path_factory):
    """An ONNX export in fp32."""
    folder = tmp_path_factory.mktemp("exported") / "embedder"
    return export_model(library_model, folder, "onnx", texts=make_texts(6)).folder


@pytest.fixture(scope="module")
def service(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with RunningService(folder, embedder, "--workers", "1", "--max-documents", "40") as running:
        yield running


def vectors_of(answer):
    assert answer.status == 200, answer.body
    return np.array(answer.json["embeddings"], np.float32)


def openai_vectors_of(answer):
    assert answer.status == 200, answer.body
    assert answer.json["object"] == "list"
    assert [own["index"] for own in answer.json["data"]] == list(range(len(answer.json["data"])))
    assert {own["object"] for own in answer.json["data"]} == {"embedding"}
    found = [own["embedding"] for own in answer.json["data"]]
    return np.array(
        [np.frombuffer(base64.b64decode(own), "<f4") if isinstance(own, str) else own for own in found], np.float32
    )


def test_embed(service, library_model, embedder):
    answer = service.post({"texts": TEXTS}, "/embed")
    np.testing.assert_allclose(vectors_of(answer), library_model.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(vectors_of(answer), load_predictor(embedder, threads=1).embed(TEXTS), atol=1e-6)
    assert set(answer.json) == {"embeddings"}
    assert answer.headers["x-model-name"] == "embedder"
    assert answer.headers["x-model-format"] == "onnx"
    assert "server-timing" in answer.headers
    assert service.post({"texts": ["w5", LONG]}, "/embed").json["truncated"] == [1]


def test_prompts(service, library_model):
    expected = library_model.encode(TEXTS, prompt_name="query")
    body = {"prompt_name": "query"}
    np.testing.assert_allclose(vectors_of(service.post({"texts": TEXTS, **body}, "/embed")), expected, atol=1e-5)
    np.testing.assert_allclose(openai_vectors_of(service.post({"input": TEXTS, **body}, OPENAI)), expected, atol=1e-5)


def test_openai(service, library_model):
    expected = library_model.encode(TEXTS)
    body = {"input": TEXTS, "model": "text-embedding-3-small", "user": "me"}
    answer = service.post(body, OPENAI)
    np.testing.assert_allclose(openai_vectors_of(answer), expected, atol=1e-5)
    assert answer.json["model"] == "embedder"
    tokens = sum(len(text.split()) + 2 for text in TEXTS)
    assert answer.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    in_base64 = service.post({**body, "encoding_format": "base64"}, OPENAI)
    assert isinstance(in_base64.json["data"][0]["embedding"], str)
    np.testing.assert_array_equal(openai_vectors_of(in_base64), openai_vectors_of(answer))
    np.testing.assert_allclose(openai_vectors_of(service.post({"input": TEXTS[0]}, OPENAI)), expected[:1], atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_fewer_dimensions(service, library_model, encoding):
    expected = library_model.encode(TEXTS)[:, :5]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    body = {"input": TEXTS, "dimensions": 5, "encoding_format": encoding}
    np.testing.assert_allclose(openai_vectors_of(service.post(body, OPENAI)), expected, atol=1e-5)
    assert openai_vectors_of(service.post({"input": "w5", "dimensions": 12}, OPENAI)).shape == (1, 12)


def test_the_client_of_openai(service, library_model):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none")
    found = client.embeddings.create(input=TEXTS, model="embedder").data
    np.testing.assert_allclose([own.embedding for own in found], library_model.encode(TEXTS), atol=1e-5)


BAD = {
    ("/embed", b"[]"): (422, "Input should be an object"),
    ("/embed", b"{}"): (422, "texts: Field required"),
    ("/embed", b'{"texts": []}'): (422, "texts: List should have at least 1 item"),
    ("/embed", b'{"texts": "w5"}'): (422, "texts: Input should be a valid array"),
    ("/embed", b'{"texts": ["w5", 1]}'): (422, "texts.1: Input should be a valid string"),
    ("/embed", b'{"texts": ["w5", " "]}'): (422, "Text 1: is empty."),
    ("/embed", b'{"texts": ["w5", " "], "prompt_name": "query"}'): (422, "Text 1: is empty."),
    ("/embed", b'{"texts": ["w5"], "prompt_name": "passage"}'): (422, "known are 'query', 'document', 'plain'"),
    ("/embed", b'{"texts": ["w5"], "other": 1}'): (422, "other: Extra inputs are not permitted"),
    ("/embed", b'{"texts": ["w5"'): (400, "Invalid JSON"),
    ("/embed", json.dumps({"texts": ["w5"] * 41}).encode()): (422, "texts: List should have at most 40 items"),
    (OPENAI, b"{}"): (422, "input: Field required"),
    (OPENAI, b'{"input": ""}'): (422, "input.text: String should have at least 1 character"),
    (OPENAI, b'{"input": ["w5", " "]}'): (422, "Text 1: is empty."),
    (OPENAI, b'{"input": [1, 2]}'): (422, "input: Value error, must be a text or a list of texts; token numbers"),
    (OPENAI, b'{"input": [[1, 2]]}'): (422, "token numbers"),
    (OPENAI, b'{"input": 5}'): (422, "input.text: Input should be a valid string"),
    (OPENAI, b'{"input": "w5", "encoding_format": "int8"}'): (422, "Input should be 'float' or 'base64'"),
    (OPENAI, b'{"input": "w5", "dimensions": 0}'): (422, "dimensions: Input should be greater than or equal to 1"),
    (OPENAI, b'{"input": "w5", "dimensions": 13}'): (422, "dimensions: 13 is more than the 12 of the model."),
    ("/predict", b'{"text": "w5"}'): (404, "an embedding model and predicts no class: POST to /embed or /v1/emb"),
    ("/rerank", b'{"query": "w5", "documents": ["w6"]}'): (404, "does not rerank"),
}


@pytest.mark.parametrize(("asked", "expected"), BAD.items(), ids=[f"{path} {body[:40]}" for path, body in BAD])
def test_bad_requests(service, asked, expected):
    path, body = asked
    status, detail = expected
    answer = service.post(body, path)
    assert (answer.status, detail in answer.json["detail"]) == (status, True), answer.json
    assert service.post({"texts": ["w5"]}, "/embed").status == 200


def test_metrics_description_and_page(service):
    before = service.metric("hf_distill_requests_total")
    service.post({"texts": TEXTS}, "/embed")
    service.post({"input": 3}, OPENAI)
    assert service.metric("hf_distill_requests_total") - before == 2
    described = service.get("/openapi.json").json["paths"]
    assert set(described) == {"/embed", OPENAI, "/health", "/ready", "/metrics", "/models"}
    assert service.get("/embed").status == 405
    assert service.get("/models").json["student"]["path"] == "/embed"
    assert "This is an embedding model, which has no form here" in service.get("/").body.decode()


@pytest.mark.long
def test_schemathesis(service, tmp_path):
    """Requests generated from the description, as in `test_openapi.py`."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG, "run"]
    options = [f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all", "--phases", "coverage"]
    options += ["--include-path-regex", "embed", "--seed", "1"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stdout[-5000:]
    assert "2 selected" in run.stdout
    assert not service.said("Traceback")


def test_student_teacher_and_token(embedder, library_model, tmp_path):
    library_model.save_pretrained(str(tmp_path / "teacher"))
    (tmp_path / "token").write_text("s3cret")
    options = ("--workers", "1", "--token-file", str(tmp_path / "token"), "--teacher", str(tmp_path / "teacher"))
    with RunningService(tmp_path, embedder, *options) as service:
        right = {"authorization": "Bearer s3cret"}
        assert service.post({"texts": TEXTS}, "/embed").status == 401
        assert service.post({"input": TEXTS}, OPENAI).status == 401
        student, teacher = (service.post({"texts": TEXTS}, own, **right) for own in ("/embed", "/embed/teacher"))
        assert teacher.headers["x-model-format"] == "pytorch"
        np.testing.assert_allclose(vectors_of(student), vectors_of(teacher), atol=1e-5)


def test_a_classifier_does_not_embed(int8, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1") as service:
        for path, body in {"/embed": {"texts": ["w5"]}, OPENAI: {"input": "w5"}}.items():
            answer = service.post(body, path)
            assert answer.status == 404
            assert answer.json["detail"] == "The student is not an embedding model: POST to /predict."
