"""HTTP on one connection: uvicorn's, which as of 0.54 waits for a slow client for ever and drops a half-closed one.

See https://github.com/Kludex/uvicorn/issues/157 and https://github.com/Kludex/uvicorn/issues/1264.
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 1 << 16
"""Bytes of a request's first line and headers together."""
UNDER_WAY = 0.5
"""Seconds that a request may be on its way to a service that stops."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection on which a request has to arrive whole, in time and with headers of bounded size.

    One that does not is answered with 408, 431 or 400, and the connection is closed. A client that has sent its request
    and closes its sending side gets its answer.
    """

    receive_timeout = 10.0
    on_refusal: Callable[[], None] = staticmethod(lambda: None)
    """Called when a request is refused before the application has heard of it."""

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
        super().data_received(data)  # which ends the headers, or does not
        if self._in_headers and self._header_bytes > MAX_HEADERS:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers have over {MAX_HEADERS:,} bytes.")

    def eof_received(self) -> bool:
        if self._is_answering():
            self.cycle.keep_alive = False
            return True
        if self._deadline is not None:
            self._refuse(HTTPStatus.BAD_REQUEST, "The connection was closed before the request was whole.")
        return False

    def shutdown(self) -> None:
        """Of a service that stops: a request that is under way is waited for, and then the connection closed."""
        if self._is_answering():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(UNDER_WAY, self._close_if_idle)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # it came together with the end of the one before it
            self._expect_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # what follows a body is nothing that anybody reads
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
        """Whether a whole request waits for its answer; it may be one of several that were sent at once."""
        return bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )

    def _close_if_idle(self) -> None:
        if self._in_headers and self._header_bytes == 0 and not self._is_answering():
            self.transport.close()

    def _too_slow(self) -> None:
        self._deadline = None
        if self._is_answering():  # of the next request nothing is read meanwhile
            self._expect_request()
        else:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive whole within {self.receive_timeout:g} s."
            )

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answers, unless that was done before the request was whole or another one's turn is first; and closes."""
        if self.transport.is_closing():
            return
        if not self._is_answering() and (self._in_headers or not self.cycle.response_started):
            body = json.dumps({"detail": detail}).encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if self._in_headers:
            self.on_refusal()
        self.transport.close()
