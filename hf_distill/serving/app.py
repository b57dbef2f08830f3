"""The HTTP interface of the service."""

import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.types import Receive, Scope, Send

from hf_distill.serving.limits import Limits
from hf_distill.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from hf_distill.serving.predict import RefusedError, check_ready, check_token, predict
from hf_distill.serving.schemas import Answer, Bodies, Error
from hf_distill.serving.service import Service
from hf_distill.version import __version__

PATHS = {"student": "/predict", "teacher": "/predict/teacher"}

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
        415: "The Content-Type is not application/json.",
        422: "The body does not match the schema, or the model cannot read a text.",
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
            description="Predictions of a distilled model for texts.",
            redoc_url=None,
        )
        self._hot: dict[str, Endpoint] = {}
        self._add_states(services)
        self._add_descriptions(services, metrics, token)
        bodies = Bodies(limits)
        for role, service in services.items():
            self._add_predict(role, service, bodies, metrics, token)

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
            """Lists the models, their paths, and the headers that identify a model in each answer."""
            return {role: {"path": PATHS[role], **service.headers} for role, service in services.items()}

        @self.interface.get("/", include_in_schema=False)
        async def page() -> Response:
            content = files("hf_distill.serving").joinpath("page.html").read_text(encoding="utf-8")
            return HTMLResponse(content, headers={"content-security-policy": PAGE_POLICY})

    def _add_predict(self, role: str, service: Service, bodies: Bodies, metrics: Metrics, token: str | None) -> None:
        async def endpoint(request: Request) -> Response:
            """Predicts for one text, or for several texts in their order."""
            started = time.perf_counter()
            try:
                check_token(request, token)
                response = await predict(service, bodies, request)
            except RefusedError as error:
                metrics.errors.labels(error.kind).inc()
                response = error.response()
            response.headers.update(service.headers)
            metrics.requests.labels(role, response.status_code).inc()
            metrics.seconds.labels(role).observe(time.perf_counter() - started)
            return response

        self._hot[PATHS[role]] = endpoint
        self.interface.post(
            PATHS[role],
            name=f"Predict with the {role}",
            dependencies=[Security(HTTPBearer(auto_error=False))] if token else [],
            response_model=Answer,
            responses=ERRORS | (UNAUTHORIZED if token else {}),
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": bodies.schema}}}
            },
        )(endpoint)
