"""A service for a model that reads pairs of texts: `/predict`, and `/rerank` in the formats of other rerankers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill import export_model, load_predictor
from hf_distill.lengths import READING
from tests.conftest import make_texts
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.deployment.conftest import tiny_student
from tests.serving.running import RunningService
from tests.serving.test_openapi import CONFIG

DOCUMENTS = make_texts(8, 3, 12)
QUERY = "w5 w6"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    """A model with one score for a pair, as an ONNX int8 export."""
    model = tiny_student("bert", "sequence classification", id2label={0: "relevance"})
    setattr(model.config, READING, {"reads_pairs": True})
    folder = tmp_path_factory.mktemp("exported") / "reranker-int8"
    return export_model(model, folder, tokenizer=make_pair_tokenizer(), min_agreement=0).folder


@pytest.fixture(scope="module")
def service(reranker, tmp_path_factory):
    with RunningService(
        tmp_path_factory.mktemp("service"), reranker, "--workers", "1", "--max-documents", "40"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def scores(reranker):
    return [own["score"] for own in load_predictor(reranker, threads=1).predict([(QUERY, own) for own in DOCUMENTS])]


def test_predict(service, reranker):
    pairs = [("w5", "w6 w7"), ("w8", "w9")]
    expected = load_predictor(reranker, threads=1).predict(pairs)
    assert service.post({"texts": pairs}).json == expected
    assert service.post({"text": "w5", "text_pair": "w6 w7"}).json == expected[0]
    answer = service.post({"text": "w5", "text_pair": "w6 w7", "top_k": 2}).json
    assert answer == {**expected[0], "scores": expected[:1]}
    assert service.post({"text": "w5 " * 30, "text_pair": "w6 " * 30}).json["truncated"] is True
    assert service.get("/models").json["student"]["reads"] == "pair"


BAD_BODIES = {
    b'{"text": "w5"}': "text_pair: Field required",
    b'{"text": "w5", "text_pair": " "}': "Text 0: is empty",
    b'{"texts": ["w5 w6"]}': "texts.0: Input should be a valid array",
    b'{"texts": [["w5"]]}': "texts.0.1: Field required",
    b'{"texts": [["w5", "w6", "w7"]]}': "texts.0: Tuple should have at most 2 items",
    b'{"texts": [["w5", "w6"], ["w5", ""]]}': "texts.1.1: String should have at least 1 character",
}


@pytest.mark.parametrize(("body", "detail"), BAD_BODIES.items())
def test_bad_pairs(service, body, detail):
    answer = service.post(body)
    assert answer.status == 422
    assert detail in answer.json["detail"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_as_cohere_and_jina(service, scores, path):
    """Sorted by score. Fields that their clients send in addition are ignored."""
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -scores[index])
    body = {"model": "rerank", "query": QUERY, "documents": DOCUMENTS}
    answer = service.post(body, path)
    assert answer.status == 200
    assert answer.json == {"results": [{"index": own, "relevance_score": scores[own]} for own in order]}
    assert answer.headers["x-model-name"] == "reranker-int8"
    best = service.post({**body, "top_n": 2, "return_documents": True}, path).json["results"]
    assert [own["index"] for own in best] == order[:2]
    assert [own["document"] for own in best] == [{"text": DOCUMENTS[index]} for index in order[:2]]
    assert len(service.post({**body, "top_n": 1000}, path).json["results"]) == len(DOCUMENTS)


def test_rerank_as_text_embeddings_inference(service, scores):
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -scores[index])
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": False, "truncate": True}
    assert service.post(body, "/rerank").json == [{"index": own, "score": scores[own]} for own in order]
    with_texts = service.post({**body, "return_text": True}, "/rerank").json
    assert [own["text"] for own in with_texts] == [DOCUMENTS[index] for index in order]


def test_documents_that_are_truncated(service):
    (short, long) = sorted(
        service.post({"query": QUERY, "documents": ["w5", "w6 " * 60]}, "/rerank").json["results"],
        key=lambda own: own["index"],
    )
    assert "truncated" not in short
    assert long["truncated"] is True


BAD_RERANKS = {
    b"[]": (422, "Input should be an object"),
    b'{"query": "w5"}': (422, "documents: Field required"),
    b'{"documents": ["w5"]}': (422, "query: Field required"),
    b'{"query": " ", "documents": ["w5"]}': (422, "query: is empty."),
    b'{"query": "w5", "documents": []}': (422, "documents: List should have at least 1 item"),
    b'{"query": "w5", "documents": ["w5", " "]}': (422, "Document 1: is empty."),
    b'{"query": "w5", "documents": ["w5", 3]}': (422, "documents.1: Input should be a valid string"),
    b'{"query": "w5", "documents": ["w5"], "top_n": 0}': (422, "top_n: Input should be greater than or equal to 1"),
    json.dumps({"query": "w5", "documents": ["w5"] * 41}).encode(): (
        422,
        "documents: List should have at most 40 items",
    ),
    b'{"query": "w5", "documents": ["w5"': (400, "Invalid JSON"),
}


@pytest.mark.parametrize(("body", "expected"), BAD_RERANKS.items(), ids=[str(body[:40]) for body in BAD_RERANKS])
def test_bad_reranks(service, body, expected):
    status, detail = expected
    answer = service.post(body, "/rerank")
    assert answer.status == status
    assert detail in answer.json["detail"]


def test_metrics_and_description(service):
    before = service.metric("hf_distill_requests_total")
    service.post({"query": QUERY, "documents": DOCUMENTS}, "/rerank")
    service.post({"query": QUERY}, "/rerank")
    assert service.metric("hf_distill_requests_total") - before == 2
    described = service.get("/openapi.json").json["paths"]
    assert {"/predict", "/rerank"} <= set(described)
    body = described["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [set(one["properties"]) for one in body["oneOf"]] == [{"text", "text_pair", "top_k"}, {"texts", "top_k"}]
    assert service.get("/rerank").status == 405


@pytest.mark.long
def test_schemathesis(service, tmp_path):
    """Requests generated from the description, as in `test_openapi.py`."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG, "run"]
    options = [f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all", "--phases", "coverage"]
    options += ["--include-path-regex", "/rerank$", "--seed", "1"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stdout[-5000:]
    assert "1 selected" in run.stdout
    assert not service.said("Traceback")


def test_bearer_token(reranker, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    options = ("--workers", "1", "--token-file", str(tmp_path / "token"), "--teacher", str(reranker))
    with RunningService(tmp_path, reranker, *options) as service:
        body = {"query": QUERY, "documents": DOCUMENTS}
        assert service.post(body, "/rerank").status == 401
        right = {"authorization": "Bearer s3cret"}
        answers = [service.post(body, path, **right) for path in ("/rerank", "/v2/rerank", "/rerank/teacher")]
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert answers[0].json == answers[2].json
