"""A service for a question answering model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill import export_model, load_predictor
from tests.question_answering import answering_student, make_question_rows, make_question_tokenizer
from tests.serving.running import RunningService
from tests.serving.test_openapi import CONFIG

PAIRS = [(row["question"], row["context"]) for row in make_question_rows(10, 50)]
QUESTIONS = [{"question": question, "context": context} for question, context in PAIRS]


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A model that may find no answer, as an ONNX int8 export."""
    student = answering_student(unanswerable=True, no_answer_threshold=-7.5)
    folder = tmp_path_factory.mktemp("exported") / "answering-int8"
    return export_model(student, folder, tokenizer=make_question_tokenizer(), texts=PAIRS, min_agreement=0).folder


@pytest.fixture(scope="module")
def service(answering, tmp_path_factory):
    with RunningService(tmp_path_factory.mktemp("service"), answering, "--workers", "1") as running:
        yield running


def test_predict(service, answering):
    """The same answers as from the predictor, for one question and for several, and for several answers."""
    predictor = load_predictor(answering, threads=1)
    expected = predictor.predict(PAIRS)
    assert {own["answer"] == "" for own in expected} == {True, False}
    assert service.post({"questions": QUESTIONS}).json == expected
    assert service.post(QUESTIONS[0]).json == expected[0]
    best = predictor.predict(PAIRS[:1], top_k=3)[0]
    assert service.post({**QUESTIONS[0], "top_k": 3}).json == {**best[0], "answers": best}
    assert service.post({"questions": QUESTIONS[:1], "top_k": 1}).json == [{**best[0], "answers": best[:1]}]
    assert service.get("/models").json["student"]["reads"] == "question"


def test_a_long_context_is_read_to_its_end(service, answering):
    context = " ".join(["w5 w6 w7"] * 200)
    answer = service.post({"question": "w8", "context": context}).json
    assert "truncated" not in answer
    assert [answer] == load_predictor(answering, threads=1).predict([("w8", context)])


BAD_BODIES = {
    b"{}": "question: Field required; context: Field required",
    b'{"text": "w5"}': "question: Field required",
    b'{"question": "w5"}': "context: Field required",
    b'{"question": "w5", "context": 5}': "context: Input should be a valid string",
    b'{"question": " ", "context": "w5"}': "Text 0: is empty",
    b'{"question": "w5", "context": "w5", "top_k": 0}': "top_k: Input should be greater than or equal to 1",
    b'{"questions": []}': "questions: List should have at least 1 item",
    b'{"questions": ["w5"]}': "questions.0: Input should be",
    b'{"questions": [{"question": "w5", "context": "w6"}, {"question": "w5", "context": " "}]}': "Text 1: is empty",
    b'{"questions": [{"question": "w5", "text": "w6"}]}': "questions.0.context: Field required",
    json.dumps({"questions": QUESTIONS[:1] * 65}).encode(): "questions: List should have at most 64 items",
    json.dumps({"question": "w5", "context": "w" * 100_001}).encode(): "context: String should have at most 100000",
    json.dumps({"question": "w5 " * 15, "context": "w6 " * 15}).encode(): "The question takes 18 of 20 tokens",
}


@pytest.mark.parametrize(("body", "detail"), BAD_BODIES.items(), ids=[str(body[:60]) for body in BAD_BODIES])
def test_bad_questions(service, body, detail):
    answer = service.post(body)
    assert answer.status == 422
    assert detail in answer.json["detail"]
    assert len(answer.body) < 400


def test_description(service):
    schema = service.get("/openapi.json").json["paths"]["/predict"]["post"]["requestBody"]["content"]
    one, several = schema["application/json"]["schema"]["oneOf"]
    assert set(one["properties"]) == {"question", "context", "top_k"}
    assert set(several["properties"]["questions"]["items"]["properties"]) == {"question", "context"}
    assert service.post(QUESTIONS[0], "/rerank").status == 404


@pytest.mark.long
def test_schemathesis(service, tmp_path):
    """Requests generated from the description, as in `test_openapi.py`."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG, "run"]
    options = [f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all", "--phases", "fuzzing"]
    options += ["--include-path", "/predict", "--max-examples", "25", "--seed", "1"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stdout[-5000:]
    assert not service.said("Traceback")
