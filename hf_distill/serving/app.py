"""The HTTP interface of services."""

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
"""The page at `/` loads nothing from anywhere, and speaks to this service alone."""

BearerToken = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
"""Documents that a path asks for one."""


def _errors(said: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": description} for status, description in said.items()}


UNAUTHORIZED = _errors({401: "The bearer token is missing or wrong."})
ERRORS = _errors(
    {
        400: "The body is no JSON, or not all of it came.",
        408: "The request took too long to arrive.",
        413: "The body is too large.",
        415: "The body is not said to be application/json.",
        422: "The body does not fit the schema, or a text the model.",
        500: "The model failed.",
        503: "Too many texts wait, no worker is ready, or the worker died. `Retry-After` says when to try again.",
        504: "There was no answer in time.",
    }
)


Endpoint = Callable[[Request], Awaitable[Response]]


class App:
    """The application. Whoever runs it starts the services.

    Args:
        services: the `"student"`, and its `"teacher"` if there is one; `PATHS` says where they are.
        limits: of a request.
        metrics: what is counted, also by the services.
        token: what clients have to show as bearer token; by default none.

    Attributes:
        interface: FastAPI's, with all paths.
        is_stopping: whether it should say that it is not ready for more.
    """

    def __init__(self, services: dict[str, Service], limits: Limits, metrics: Metrics, token: str | None = None):
        self.metrics = metrics
        self.is_stopping = False
        self.interface = FastAPIOffline(
            title="hf_distill",
            version=__version__,
            description="What a distilled model makes of texts.",
            redoc_url=None,
        )
        self._hot: dict[str, Endpoint] = {}
        self._add_states(services)
        self._add_descriptions(services, metrics, token)
        bodies = Bodies(limits)
        for role, service in services.items():
            self._add_predict(role, service, bodies, metrics, token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Predictions go around FastAPI, whose middleware and routing take about as long as all else that is done here.

        The paths are in FastAPI too, for their documentation and for what is not POST.
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
            """Whether the service is alive."""
            return {"status": "alive"}

        @self.interface.get("/ready", responses={503: {"model": Error}})
        async def ready() -> dict[str, str]:
            """Whether the models are loaded and warm, and the service is not about to stop."""
            if self.is_stopping:
                raise RefusedError(503, "not_ready", "The service is about to stop.")
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
            """Counters for Prometheus."""
            return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

        @self.interface.get("/models", **protected)
        async def models() -> dict[str, dict[str, str]]:
            """What is served, with the headers that an answer has."""
            return {role: {"path": PATHS[role], **service.headers} for role, service in services.items()}

        @self.interface.get("/", include_in_schema=False)
        async def page() -> Response:
            content = files("hf_distill.serving").joinpath("page.html").read_text(encoding="utf-8")
            return HTMLResponse(content, headers={"content-security-policy": PAGE_POLICY})

    def _add_predict(self, role: str, service: Service, bodies: Bodies, metrics: Metrics, token: str | None) -> None:
        async def endpoint(request: Request) -> Response:
            """What the model makes of a text, or of several, in their order."""
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
