"""HTTP on one connection, on top of uvicorn's protocol.

As of version 0.54, uvicorn waits for a slow client for ever (https://github.com/Kludex/uvicorn/issues/157) and drops a
half-closed connection (https://github.com/Kludex/uvicorn/issues/1264).
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 1 << 16
"""Largest size in bytes of a request's first line and headers together."""
UNDER_WAY = 0.5
"""Seconds for which a stopping service waits for a request that is on its way."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection with limits on the time and the header size of a request.

    A request that is too slow, too large or incomplete is answered with 408, 431 or 400, and the connection is closed.
    A client that closes its sending side after its request still gets its answer.
    """

    receive_timeout = 10.0
    on_refusal: Callable[[], None] = staticmethod(lambda: None)
    """Called when a request is refused before it reaches the application."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_is_whole()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._expect_request()
        self._header_bytes += len(data)
        super().data_received(data)  # may complete the headers
        if self._in_headers and self._header_bytes > MAX_HEADERS:
            detail = f"The headers are larger than {MAX_HEADERS:,} bytes."
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def eof_received(self) -> bool:
        if self._is_answering():
            self.cycle.keep_alive = False
            return True
        if self._deadline is not None:
            self._refuse(HTTPStatus.BAD_REQUEST, "The connection was closed before the whole request arrived.")
        return False

    def shutdown(self) -> None:
        """When the service stops: waits for a request that is on its way, then closes the connection."""
        if self._is_answering():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(UNDER_WAY, self._close_if_idle)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # the message arrived together with the end of the previous one
            self._expect_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # trailers after a body are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers, self._header_bytes = True, 0
        self._request_is_whole()

    def _expect_request(self) -> None:
        self._deadline = self.loop.call_later(self.receive_timeout, self._too_slow)

    def _request_is_whole(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_answering(self) -> bool:
        """True if a complete request waits for its answer, possibly one of several that were sent at once."""
        return bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )

    def _close_if_idle(self) -> None:
        if self._in_headers and self._header_bytes == 0 and not self._is_answering():
            self.transport.close()

    def _too_slow(self) -> None:
        self._deadline = None
        if self._is_answering():  # the next request is not read until then
            self._expect_request()
        else:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"The whole request did not arrive within {self.receive_timeout:g} s."
            )

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answers with an error and closes. Only closes if an answer has started, or if another one comes first."""
        if self.transport.is_closing():
            return
        if not self._is_answering() and (self._in_headers or not self.cycle.response_started):
            body = json.dumps({"detail": detail}).encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if self._in_headers:
            self.on_refusal()
        self.transport.close()
