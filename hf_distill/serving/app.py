"""The HTTP interface of the service."""

import functools
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.types import Receive, Scope, Send

from hf_distill.serving.embedding import EmbedBodies, EmbeddingList, Embeddings, of_openai, of_texts
from hf_distill.serving.files import NUM_SCORES, FileBodies
from hf_distill.serving.limits import Limits
from hf_distill.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from hf_distill.serving.model_info import ModelInfo
from hf_distill.serving.predict import RefusedError, check_ready, check_token, embed, predict, rerank
from hf_distill.serving.reranking import RerankAnswer, RerankBodies
from hf_distill.serving.schemas import MAX_TOP_K, READS, Answer, Bodies, Error
from hf_distill.serving.service import Service
from hf_distill.version import __version__

PATHS = {"student": "/predict", "teacher": "/predict/teacher"}
RERANK_PATHS = {"student": ["/rerank", "/v1/rerank", "/v2/rerank"], "teacher": ["/rerank/teacher"]}
"""The first path of each is documented. The others are those that clients of Cohere and Jina add to their base URL."""

EMBED_PATHS = {"student": ["/embed"], "teacher": ["/embed/teacher"]}
OPENAI_PATHS = {"student": ["/v1/embeddings"], "teacher": []}

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page at `/`: it loads nothing and connects only to this service."""

BearerToken = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
"""Documents in OpenAPI that a path needs a bearer token."""


def _errors(said: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": description} for status, description in said.items()}


UNAUTHORIZED = _errors({401: "The bearer token is missing or wrong."})
ERRORS = _errors(
    {
        400: "The body is not valid JSON or is incomplete.",
        408: "The request took too long to arrive.",
        413: "The body is too large.",
        415: "The Content-Type is not application/json, nor that of a file that the model reads.",
        422: "The body does not match the schema, or the model cannot read a text, an image or a recording.",
        500: "The model failed.",
        503: "The queue is full, no worker is ready, or the worker died. Try again after the seconds in `Retry-After`.",
        504: "The model did not answer in time.",
    }
)


Endpoint = Callable[[Request], Awaitable[Response]]


class App:
    """The ASGI application. The caller starts the services.

    Args:
        services: the `"student"`, and optionally its `"teacher"`, at the paths in `PATHS`.
        limits: limits of a request.
        metrics: metrics, shared with the services.
        token: bearer token that clients must send. Default: none is needed.

    Attributes:
        interface: the FastAPI application with all paths.
        is_stopping: True while the service stops; `/ready` then answers 503.
    """

    def __init__(self, services: dict[str, Service], limits: Limits, metrics: Metrics, token: str | None = None):
        self.metrics = metrics
        self.is_stopping = False
        self.interface = FastAPIOffline(
            title="hf_distill",
            version=__version__,
            description="Predictions of a distilled model.",
            redoc_url=None,
        )
        self._hot: dict[str, Endpoint] = {}
        self._add_states(services)
        self._add_descriptions(services, metrics, token)
        self._services, self._token = services, token
        self._bodies: dict[str, Bodies | FileBodies] = {reads: Bodies(limits, reads) for reads in READS}
        self._bodies |= {kind: FileBodies(limits, kind) for kind in ("image", "audio")}
        self._rerank_bodies = RerankBodies(limits)
        self._embed_bodies = EmbedBodies(limits, of_texts)
        self._openai_bodies = EmbedBodies(limits, of_openai)
        self._described: dict[str, dict[str, Any]] = {}
        for role, service in services.items():
            self._add_predict(role, service)
            self._add_rerank(role, service)
            self._add_embed(role, service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles predictions without FastAPI, whose middleware and routing would take about as long as the rest.

        FastAPI knows the same paths, for the documentation and for methods other than POST.
        """
        endpoint = self._hot.get(scope["path"]) if scope.get("method") == "POST" else None
        if endpoint is None:
            await self.interface(scope, receive, send)
        else:
            response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)

    def models_are_loaded(self) -> None:
        """Describes in OpenAPI what the loaded models read."""
        for role, service in self._services.items():
            assert service.info is not None  # it is loaded
            bodies = self._bodies[service.info.reads]
            kind = bodies.kind if isinstance(bodies, FileBodies) else None
            self._described[role].update(_request_body(bodies.schema, kind))
            if service.info.embeds:
                self._describe_embedding(role, service.info)
            if service.info.reranks:
                path = RERANK_PATHS[role][0]
                schema = self._rerank_bodies.schema
                self._describe(f"Rerank with the {role}", path, self._hot[path], schema, RerankAnswer)
        self.interface.openapi_schema = None  # it is made again when it is asked for

    def _describe_embedding(self, role: str, info: ModelInfo) -> None:
        """Describes the paths of an embedding model, and leaves out that of predictions."""
        assert info.width is not None  # true for every embedding model
        for route in self.interface.router.routes:
            if isinstance(route, APIRoute) and route.path == PATHS[role]:
                route.include_in_schema = False
        for paths, bodies, answer in (
            (EMBED_PATHS[role], self._embed_bodies, Embeddings),
            (OPENAI_PATHS[role], self._openai_bodies, EmbeddingList),
        ):
            schema = bodies.schema_for(info.width, list(info.prompts))
            for path in paths:
                self._describe(f"Embed with the {role}", path, self._hot[path], schema, answer)

    def _add_states(self, services: dict[str, Service]) -> None:
        @self.interface.get("/health")
        async def health() -> dict[str, str]:
            """Answers 200 while the service is alive."""
            return {"status": "alive"}

        @self.interface.get("/ready", responses={503: {"model": Error}})
        async def ready() -> dict[str, str]:
            """Answers 200 if all models are loaded and the service is not stopping, else 503."""
            if self.is_stopping:
                raise RefusedError(503, "not_ready", "The service is stopping.")
            for service in services.values():
                check_ready(service)
            return {"status": "ready"}

        @self.interface.exception_handler(RefusedError)
        async def refuse(request: Request, error: RefusedError) -> Response:
            return error.response()

    def _add_descriptions(self, services: dict[str, Service], metrics: Metrics, token: str | None) -> None:
        async def check(request: Request, _: BearerToken) -> None:
            check_token(request, token)

        protected = {"dependencies": [Depends(check)], "responses": UNAUTHORIZED} if token else {}

        @self.interface.get("/metrics", response_class=Response, **protected)
        async def prometheus() -> Response:
            """Metrics in the Prometheus text format."""
            return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

        @self.interface.get("/models", **protected)
        async def models() -> dict[str, dict[str, str]]:
            """Lists the models, their paths, the headers that identify a model, and what it reads."""
            return {
                role: {"path": _path_of(role, service), **service.headers}
                | ({"reads": service.info.reads} if service.info else {})
                for role, service in services.items()
            }

        @self.interface.get("/", include_in_schema=False)
        async def page() -> Response:
            content = files("hf_distill.serving").joinpath("page.html").read_text(encoding="utf-8")
            return HTMLResponse(content, headers={"content-security-policy": PAGE_POLICY})

    def _add_predict(self, role: str, service: Service) -> None:
        async def answer(request: Request) -> Response:
            """Predicts for one text, pair of texts or question, or for several in their order."""
            return await predict(service, self._bodies, request)

        self._hot[PATHS[role]] = endpoint = self._endpoint(role, service, answer)
        schema = self._bodies["text"].schema  # until the model is loaded
        self._described[role] = self._describe(f"Predict with the {role}", PATHS[role], endpoint, schema, Answer)

    def _add_rerank(self, role: str, service: Service) -> None:
        async def answer(request: Request) -> Response:
            """Scores the documents of a query, and returns them in the order of their scores."""
            return await rerank(service, self._rerank_bodies, request)

        self._hot |= dict.fromkeys(RERANK_PATHS[role], self._endpoint(role, service, answer))

    def _add_embed(self, role: str, service: Service) -> None:
        async def answer(request: Request) -> Response:
            """Computes the vectors of texts."""
            return await embed(service, self._embed_bodies, request)

        async def answer_as_openai(request: Request) -> Response:
            """Computes the vectors of texts, in the format of OpenAI."""
            return await embed(service, self._openai_bodies, request)

        self._hot |= dict.fromkeys(EMBED_PATHS[role], self._endpoint(role, service, answer))
        self._hot |= dict.fromkeys(OPENAI_PATHS[role], self._endpoint(role, service, answer_as_openai))

    def _endpoint(self, role: str, service: Service, answer: Endpoint) -> Endpoint:
        """Checks the token, turns refusals into answers, and measures how long an answer takes."""

        @functools.wraps(answer)
        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            try:
                check_token(request, self._token)
                response = await answer(request)
            except RefusedError as error:
                self.metrics.errors.labels(error.kind).inc()
                response = error.response()
            response.headers.update(service.headers)
            self.metrics.requests.labels(role, response.status_code).inc()
            self.metrics.seconds.labels(role).observe(time.perf_counter() - started)
            return response

        return endpoint

    def _describe(
        self, name: str, path: str, endpoint: Endpoint, schema: dict[str, Any], answer: Any
    ) -> dict[str, Any]:
        """Adds a path to the interface. Returns its entries for OpenAPI, which may be changed."""
        described = _request_body(schema)
        self.interface.post(
            path,
            name=name,
            dependencies=[Security(HTTPBearer(auto_error=False))] if self._token else [],
            response_model=answer,
            responses=ERRORS | (UNAUTHORIZED if self._token else {}),
            openapi_extra=described,
        )(endpoint)
        return described


def _path_of(role: str, service: Service) -> str:
    """The path of what a model gives: predictions, or vectors."""
    return EMBED_PATHS[role][0] if service.info is not None and service.info.embeds else PATHS[role]


def _request_body(schema: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    """The entries of OpenAPI for a body of JSON; with `kind`, also for a body that is a file, such as an image."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if kind is None:
        return {"requestBody": {"required": True, "content": content}}
    content[f"{kind}/*"] = {"schema": {"type": "string", "format": "binary"}}
    top_k = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 1}
    described = {"name": "top_k", "in": "query", "schema": top_k, "description": f"{NUM_SCORES} For a body of a file."}
    return {"requestBody": {"required": True, "content": content}, "parameters": [described]}
