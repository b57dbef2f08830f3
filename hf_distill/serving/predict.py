"""Handles one request to `/predict`, `/rerank` or `/embed`: checks and reads it, and answers or refuses it."""

import json
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from hf_distill.deployment.embeddings import Prompts
from hf_distill.serving.batching import OverloadedError
from hf_distill.serving.embedding import EmbedBodies, EmbedBody, from_entry
from hf_distill.serving.files import FileBodies
from hf_distill.serving.model_info import ModelInfo
from hf_distill.serving.reranking import Ranked, RerankBodies
from hf_distill.serving.schemas import Bodies, describe
from hf_distill.serving.service import Answered, ModelFailedError, Service, WorkerLostError

NAMES = {"image": "Image", "audio": "Recording"}
"""What an input is called in errors, if it is not a text."""

AnyBodies = Bodies | RerankBodies | EmbedBodies | FileBodies


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        kind: label in the metrics.
        headers: headers of the answer.
    """

    def __init__(self, status: int, kind: str, detail: str, headers: dict[str, str] | None = None):
        super().__init__(detail)
        self.status, self.kind, self.headers = status, kind, headers

    def response(self) -> Response:
        return JSONResponse({"detail": str(self)}, self.status, self.headers)


def check_ready(service: Service) -> ModelInfo:
    """Describes the model. Raises `RefusedError` if no worker has loaded it."""
    if not service.is_ready or service.info is None:
        raise RefusedError(503, "not_ready", f"The {service.role} is still loading.", _retry_after(1))
    return service.info


def read_token(file: Path) -> str:
    """Reads the bearer token from a file.

    Raises:
        ValueError: if the file is empty.
    """
    token = file.read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"{file} is empty: write the bearer token into it.")
    return token


def check_token(request: Request, token: str | None) -> None:
    """Raises `RefusedError` if a bearer token is needed and the request does not have it."""
    if token is None:
        return
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(shown.strip().encode(), token.encode()):
        challenge = {"www-authenticate": "Bearer"}
        raise RefusedError(401, "unauthorized", "The bearer token is missing or wrong.", challenge)


async def predict(service: Service, bodies: Mapping[str, Bodies | FileBodies], request: Request) -> Response:
    """Answers a request with the service's predictions.

    Args:
        service: the service.
        bodies: the request bodies by what a model reads.
        request: the request.

    Raises:
        RefusedError: if the request cannot be answered with predictions.
    """
    info = check_ready(service)
    if info.embeds:
        detail = f"The {service.role} is an embedding model and predicts no class: POST to /embed or /v1/embeddings."
        raise RefusedError(404, "invalid", detail)
    body, answered = await _ask(service, bodies[info.reads], request)
    top_k = body.top_k if "top_k" in body.model_fields_set else None
    answers = answers_of(answered.entries, top_k, NAMES.get(info.reads, "Text"))
    return _response(answers[0] if body.is_one else answers, answered)


async def rerank(service: Service, bodies: RerankBodies, request: Request) -> Response:
    """Answers a request with the documents of a query, in the order of their scores.

    Raises:
        RefusedError: if the model gives no score to a pair of texts, or if the request cannot be answered.
    """
    if not check_ready(service).reranks:
        detail = f"The {service.role} does not rerank: that needs a model with one score for a pair of texts."
        raise RefusedError(404, "invalid", detail)
    body, answered = await _ask(service, bodies, request)
    if not body.query.strip():
        raise RefusedError(422, "invalid", "query: is empty.")
    check_entries(answered.entries, "Document")
    scored = [
        Ranked(index, entry["scores"][0]["score"], entry["truncated"]) for index, entry in enumerate(answered.entries)
    ]
    return _response(body.answer(sorted(scored, key=lambda own: -own.score)), answered)


async def embed(service: Service, bodies: EmbedBodies, request: Request) -> Response:
    """Answers a request with the vectors of its texts.

    Raises:
        RefusedError: if the model has no vectors of texts, no such prompt or fewer dimensions, or if the request cannot
            be answered.
    """
    info = check_ready(service)
    if not info.embeds:
        raise RefusedError(404, "invalid", f"The {service.role} is not an embedding model: POST to /predict.")
    body, answered = await _ask(service, bodies, request, lambda body: _with_prompt(body, info))
    check_entries(answered.entries, "Text")
    return _response(body.answer([from_entry(entry) for entry in answered.entries], info.name), answered)


def _with_prompt(body: EmbedBody, info: ModelInfo) -> list[str]:
    """The texts of a request for vectors, with their prompt."""
    assert info.width is not None  # true for every embedding model
    if body.dimensions is not None and body.dimensions > info.width:
        raise RefusedError(422, "invalid", f"dimensions: {body.dimensions} is more than the {info.width} of the model.")
    try:
        prompt = Prompts(info.prompts, info.default_prompt_name).find(body.prompt_name)
    except ValueError as error:
        raise RefusedError(422, "invalid", str(error)) from None
    for number, text in enumerate(body.inputs):
        if not text.strip():  # the worker sees it with its prompt
            raise RefusedError(422, "invalid", f"Text {number}: is empty.")
    return [f"{prompt}{text}" for text in body.inputs]


async def _ask(
    service: Service, bodies: AnyBodies, request: Request, inputs_of: Callable[[Any], list] | None = None
) -> tuple[Any, Answered]:
    """Reads the body of a request, and lets the model predict for it, or for what `inputs_of` makes of it."""
    try:
        service.queue.check_room()  # before the body is read, so that refusing is cheap
        body = await _body(request, bodies)
        inputs = body.inputs if inputs_of is None else inputs_of(body)
        return body, await service.predict(inputs, getattr(body, "top_k", 1))
    except OverloadedError as error:
        raise RefusedError(503, "overloaded", str(error), _retry_after(error.retry_after)) from None
    except TimeoutError:
        raise RefusedError(504, "timeout", f"No answer within {service.limits.timeout:g} s.") from None
    except WorkerLostError:
        raise RefusedError(503, "worker_lost", "The worker died: try again.", _retry_after(1)) from None
    except ModelFailedError:
        raise RefusedError(500, "model", "The model failed; the reason is in the log of the service.") from None


def _response(answer: Any, answered: Answered) -> Response:
    try:
        content = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise RefusedError(500, "model", "The model failed: its scores are NaN or infinite.") from None
    timing = f"queue;dur={1000 * answered.queued:.2f}, model;dur={1000 * answered.modelled:.2f}"
    return Response(content, media_type="application/json", headers={"server-timing": timing})


async def _body(request: Request, bodies: AnyBodies) -> Any:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(bodies, FileBodies) and bodies.takes(content_type):
        file = await _receive(request, bodies.limits.max_body)
        return _parsed(lambda: bodies.read_file(file, request.query_params.get("top_k")))
    if content_type != "application/json":
        other = f" or {bodies.kind}/..., such as {bodies.example}" if isinstance(bodies, FileBodies) else ""
        raise RefusedError(415, "invalid", f"The Content-Type must be application/json{other}.")
    content = await _receive(request, bodies.limits.max_body)
    return _parsed(lambda: bodies.read(content), is_tagged=not isinstance(bodies, EmbedBodies))


async def _receive(request: Request, max_body: int) -> bytes:
    _check_size(int(request.headers.get("content-length", 0)), max_body)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            _check_size(len(body), max_body)
    except ClientDisconnect:
        raise RefusedError(400, "not_received", "The connection was closed before the whole body arrived.") from None
    return bytes(body)


def _check_size(num_bytes: int, max_body: int) -> None:
    if num_bytes > max_body:
        raise RefusedError(413, "too_large", f"The body is larger than {max_body:,} bytes.")


def _parsed(read: Callable[[], Any], is_tagged: bool = True) -> Any:
    try:
        return read()
    except ValidationError as error:
        is_json = error.errors(include_input=False)[0]["type"] != "json_invalid"
        raise RefusedError(422 if is_json else 400, "invalid", describe(error, is_tagged)) from None


def answers_of(entries: list[dict[str, Any]], top_k: int | None, name: str = "Text") -> list[dict[str, Any]]:
    """Turns a worker's entries, one per text, into answers as in `schemas.Answer`.

    Raises:
        RefusedError: if one of the entries is an error.
    """
    check_entries(entries, name)
    return [_answer(entry, top_k) | ({"truncated": True} if entry["truncated"] else {}) for entry in entries]


def check_entries(entries: list[dict[str, Any]], name: str) -> None:
    """Raises `RefusedError` if one of a worker's entries is an error; `name` is what an input is called."""
    for number, entry in enumerate(entries):
        if "error" in entry:
            raise RefusedError(422, "invalid", f"{name} {number}: {entry['error']}")


def _answer(entry: dict[str, Any], top_k: int | None) -> dict[str, Any]:
    if "entities" in entry:
        return {"entities": entry["entities"]}
    if "generated" in entry:
        return entry["generated"]
    name = "answers" if "answers" in entry else "scores"
    found = entry[name]  # may be more than wanted: the largest `top_k` in the batch
    return found[0] if top_k is None else {**found[0], name: found[:top_k]}


def _retry_after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds))}
