"""A service in a separate process, started by `hf-distill serve`, and a client for it."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

PATIENCE = 30.0
"""Seconds until a test gives up on a service."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> object:
        return json.loads(self.body)


def read_answer(stream: BinaryIO) -> Answer | None:
    """Reads the next complete answer on a connection, even if it arrives in pieces. None if the connection has ended.

    Args:
        stream: the connection's `makefile("rb")`, the same one for all of its answers.
    """
    try:
        status_line = stream.readline()
    except ConnectionResetError:  # the service has closed the connection before all data was sent
        return None
    if not status_line:
        return None
    headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
    length = int(headers["content-length"])
    body = stream.read(length)
    assert len(body) == length, f"{len(body)} of {length} bytes: {body}"
    return Answer(int(status_line.split()[1]), headers, body)


class RunningService:
    """A context that runs `hf-distill serve MODEL`. The service is ready at the start, and killed at the end.

    Attributes:
        port: its port.
        process: its process.
        log: file with its output.
    """

    def __init__(self, folder: Path, model: str | Path, *options: str, wait: bool = True):
        self.log = folder / f"service-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "hf_distill.cli", "serve", str(model), *options]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, "--port", str(self.port)], stderr=log, env=os.environ)
        if wait:
            self.wait_until(lambda: self.said("is ready"))

    def __enter__(self) -> "RunningService":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    def wait_until(self, condition) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up, self.log.read_text()
            time.sleep(0.02)

    def is_ready(self) -> bool:
        return self.get("/ready").status == 200

    def answers(self, path: str) -> bool:
        try:
            return self.get(path).status == 200
        except OSError:
            return False

    def workers(self) -> list[psutil.Process]:
        """The running worker processes."""
        return [child for child in psutil.Process(self.process.pid).children() if _is_worker(child)]

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask("GET", path, None, headers)

    def post(self, body: object, path: str = "/predict", **headers: str) -> Answer:
        """Posts a body as JSON; bytes are posted unchanged."""
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, encoded, {"content-type": "application/json", **headers})

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def send(self, *pieces: bytes, end: bool = False) -> list[Answer]:
        """Reads answers until the service closes the connection."""
        with self.connect() as connection, connection.makefile("rb") as answers:
            for piece in pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return list(iter(lambda: read_answer(answers), None))

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "hf_distill.serving.worker" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
