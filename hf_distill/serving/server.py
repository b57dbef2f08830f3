"""Runs a service from start to end: address, workers, signals."""

import asyncio
import errno
import logging
import math
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from hf_distill.deployment.backends import available_cores
from hf_distill.serving.app import App
from hf_distill.serving.limits import Limits
from hf_distill.serving.metrics import Metrics
from hf_distill.serving.protocol import BoundedProtocol
from hf_distill.serving.service import Service

logger = logging.getLogger(__name__)

FAREWELL = 1.0
"""Seconds for which a stopping service still accepts requests, and tells each client to reconnect."""
IDLE_CONNECTION = 75
"""Seconds after which an idle connection is closed. Longer than in load balancers, so that they close it first."""
MOST_CONNECTIONS = 10_000
"""Most connected clients, if the system allows it; macOS allows 10,240."""


def serve(
    model: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    format: str = "auto",
    teacher: str | Path | None = None,
    workers: int | None = None,
    threads: int = 1,
    token: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serves a model over HTTP until SIGTERM or SIGINT, then finishes all accepted requests.

    Args:
        model: folder or Hub name of a student or an export.
        host: address to listen on. The default is reachable from this machine only.
        port: port to listen on; 0 chooses a free port.
        format: format to load, as in `load_predictor`. By default ONNX int8 is preferred.
        teacher: folder or Hub name of a second model to compare with, served by one worker at `/predict/teacher`.
        workers: number of processes, each with its own copy of the model. Default: cores divided by `threads`.
        threads: threads per worker.
        token: bearer token that clients must send. Default: none is needed.
        limits: limits of the service.

    Raises:
        ValueError: if an option is out of range, if the address is not available, or if a model cannot be loaded or
            served.

    Example:
        >>> serve("outputs/student-int8", port=8080)
    """
    for name, number in {"workers": workers, "threads": threads}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: it must be above 0.")
    limits, metrics, cores = limits or Limits(), Metrics(), available_cores()
    student = Service("student", str(model), format, workers or max(1, cores // threads), threads, limits, metrics)
    services = {"student": student}
    if teacher is not None:
        services["teacher"] = Service("teacher", str(teacher), "auto", 1, cores, limits, metrics)
    app = App(services, limits, metrics, token)
    _allow_connections()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        _bind(listener, host, port)
        server = Server(app, limits)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.run_with(services, listener))


class Server(uvicorn.Server):
    """A uvicorn server that loads models at the start, and says goodbye to its clients at the end."""

    def __init__(self, app: App, limits: Limits):
        on_refusal = staticmethod(app.metrics.errors.labels("not_received").inc)
        options = {"receive_timeout": limits.receive_timeout, "on_refusal": on_refusal}
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Protocol", (BoundedProtocol,), options),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_CONNECTION,
                timeout_graceful_shutdown=math.ceil(limits.timeout + limits.receive_timeout),
            )
        )
        self.app = app

    async def run_with(self, services: dict[str, Service], listener: socket.socket) -> None:
        """Serves from the start, while the models still load: `/health` answers 200 and `/ready` answers 503."""
        self.waiting = listener.dup()  # keeps the queue of new connections open when uvicorn closes its listener
        loading = asyncio.create_task(self._load(services, listener))
        try:
            await self.serve(sockets=[listener])
        finally:
            loading.cancel()  # has no effect if it is done
            await asyncio.wait({loading})
            self.waiting.close()
            for service in services.values():
                await service.stop()
        if not loading.cancelled():
            loading.result()

    async def _load(self, services: dict[str, Service], listener: socket.socket) -> None:
        try:
            for service in services.values():
                await service.start()
        except ValueError:
            self.should_exit = self.force_exit = True
            raise
        self.app.models_are_loaded()
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        for service in services.values():
            logger.info("%s is ready: %s", address, ", ".join([service.role, *service.headers.values()]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tells clients with their next answer that the connection closes; after that accepts no new clients."""
        self.app.is_stopping = True
        if not self.force_exit:
            logger.info("Stopping after all accepted requests are answered")
            self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
            await asyncio.sleep(FAREWELL)
            await self._let_in_the_last()
        await super().shutdown(sockets)

    async def _let_in_the_last(self) -> None:
        """Accepts clients that are connected but not yet accepted: closing the listener would reset them."""
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        with self.waiting as waiting:
            waiting.setblocking(False)
            while True:
                try:
                    connection, _ = waiting.accept()
                except BlockingIOError:
                    return
                await loop.connect_accepted_socket(self._make_protocol, connection)

    def _make_protocol(self) -> BoundedProtocol:
        return self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state={})

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles the stop signals without raising them again at the end: stopping on a signal is a success."""
        loop = asyncio.get_running_loop()
        stops = signal.SIGINT, signal.SIGTERM
        before = [signal.getsignal(stop) for stop in stops]
        for stop in stops:
            if sys.platform == "win32":  # its event loops have no signal handlers
                signal.signal(stop, self.handle_exit)
            else:
                loop.add_signal_handler(stop, self.handle_exit, stop, None)
        try:
            yield
        finally:
            for stop, handler in zip(stops, before, strict=True):
                if sys.platform == "win32":
                    signal.signal(stop, handler)
                else:
                    loop.remove_signal_handler(stop)


def _allow_connections() -> None:
    """Raises the limit on open files. Each connection is one, and most systems allow only 1,024 by default."""
    if sys.platform == "win32":
        return  # Windows has no such limit
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS if hard == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _bind(listener: socket.socket, host: str, port: int) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OverflowError:
        raise ValueError(f"port={port} must be from 0 to 65535.") from None
    except OSError as error:
        raise ValueError(f"Cannot listen on {host}, port {port}: {_advice(error)}") from None


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is in use. Choose another with --port."
    return f"{error.strerror}. --host must be an address of this machine."
