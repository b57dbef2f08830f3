"""Clients that are slow, send too much, or go away: each gets an answer in bounded time, and so does the next one."""

import select
import threading
import time

import pytest

from tests.serving.running import RunningService, read_answer

RECEIVE_TIMEOUT = 1.0
BODY = b'{"text": "w5 w6"}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def impatient(int8, tmp_path_factory):
    """A service that waits a second for a request."""
    options = ["--workers", "1", "--receive-timeout", str(RECEIVE_TIMEOUT)]
    with RunningService(tmp_path_factory.mktemp("impatient"), int8, *options) as running:
        yield running


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /pre",
        HEAD,
        HEAD + b"Content-Length: 17\r\n\r\n",
        HEAD + b"Content-Length: 17\r\n\r\n" + BODY[:5],
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY[:5],
        WHOLE[:-1],
    ],
    ids=["nothing", "line", "headers", "no body", "half a body", "a chunk", "all but a byte"],
)
def test_a_request_that_does_not_arrive(impatient, sent):
    counted = impatient.metric("hf_distill_errors_total")
    started = time.monotonic()
    (answer,) = impatient.send(sent)
    assert RECEIVE_TIMEOUT * 0.9 < time.monotonic() - started < 5 * RECEIVE_TIMEOUT
    assert answer.status == 408
    assert answer.json["detail"] == "The whole request did not arrive within 1 s."
    assert 'kind="not_received"' in impatient.get("/metrics").body.decode()
    assert impatient.metric("hf_distill_errors_total") == counted + 1
    assert impatient.post({"text": "w5"}).status == 200


def test_a_byte_now_and_then_does_not_help(impatient):
    started = time.monotonic()
    with impatient.connect() as connection, connection.makefile("rb") as answers:
        for byte in range(40):
            connection.sendall(WHOLE[byte : byte + 1])
            if select.select([connection], [], [], 0.1)[0]:
                break
        assert read_answer(answers).status == 408
    assert time.monotonic() - started < 3 * RECEIVE_TIMEOUT


def test_a_second_request_on_a_connection_has_to_arrive_too(impatient):
    with impatient.connect() as connection, connection.makefile("rb") as answers:
        connection.sendall(WHOLE)
        assert read_answer(answers).status == 200
        time.sleep(1.5 * RECEIVE_TIMEOUT)  # a connection may be idle between requests
        connection.sendall(WHOLE)
        assert read_answer(answers).status == 200
        connection.sendall(HEAD)
        assert read_answer(answers).status == 408
        assert read_answer(answers) is None


def test_a_request_right_behind_another_has_to_arrive_too(impatient):
    """The start of a request arrives together with the end of the previous one."""
    for beginning in (b"POST /pre", HEAD, WHOLE[:-1]):
        assert [answer.status for answer in impatient.send(WHOLE + beginning)] == [200, 408]


def test_who_closes_the_sending_side_is_answered(service):
    assert [answer.status for answer in service.send(WHOLE, end=True)] == [200]
    assert [answer.status for answer in service.send(WHOLE + WHOLE, end=True)] == [200, 200]


@pytest.mark.parametrize("sent", [b"POST /pre", HEAD, WHOLE[:-1]], ids=["line", "headers", "all but a byte"])
def test_who_closes_it_too_early_is_told(service, sent):
    (answer,) = service.send(sent, end=True)
    assert answer.status == 400
    assert answer.json["detail"] == "The connection was closed before the whole request arrived."
    assert service.post({"text": "w5"}).status == 200


def test_what_is_no_http(service):
    for garbage in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST /predict HTTP/9.9\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
    ):
        assert [answer.status for answer in service.send(garbage)] == [400]
    assert service.post({"text": "w5"}).status == 200


def test_endless_headers(service):
    (answer,) = service.send(HEAD, b"X: " + b"y" * 70_000)
    assert answer.status == 431
    assert answer.json["detail"] == "The headers are larger than 65,536 bytes."
    together = service.send(WHOLE + HEAD + b"X: " + b"y" * 70_000, end=True)
    assert [answer.status for answer in together][:1] in ([], [200])  # the first one's answer is not mixed up with it
    many = b"".join(b"x%d: y\r\n" % number for number in range(10_000))
    assert [answer.status for answer in service.send(HEAD, many)] == [431]
    assert service.post({"text": "w5"}).status == 200


def test_50_megabytes(service):
    """Large bodies are refused by their headers. A client that still sends the body gets the refusal afterwards."""
    megabyte = b"x" * (1 << 20)
    known = HEAD + b"Content-Length: %d\r\n\r\n" % (50 * len(megabyte)), *[megabyte] * 50
    chunk = b"%x\r\n" % len(megabyte) + megabyte + b"\r\n"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 50, b"0\r\n\r\n"
    started = time.monotonic()
    for pieces in (known, chunked):
        with service.connect() as connection, connection.makefile("rb") as answers:
            for piece in pieces:
                connection.sendall(piece)
            assert read_answer(answers).status == 413
    assert time.monotonic() - started < 20
    assert service.metric("process_resident_memory_bytes") < 300e6
    assert service.post({"text": "w5"}).status == 200


def test_an_endless_body_ends(impatient):
    """After a refusal, further data is read only as long as a request may take."""
    chunk = b"%x\r\n" % (1 << 20) + b"x" * (1 << 20) + b"\r\n"
    started = time.monotonic()
    with impatient.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            while time.monotonic() - started < 10:
                connection.sendall(chunk)
        except (ConnectionResetError, BrokenPipeError):
            ended = time.monotonic()
    assert ended - started < 5 * RECEIVE_TIMEOUT


def test_who_goes_away_harms_nobody(service):
    """A hundred clients disconnect, within their request or before the answer."""
    restarts = service.metric("hf_distill_worker_restarts_total")

    def hang_up(number):
        with service.connect() as connection:
            connection.sendall(WHOLE if number % 2 else WHOLE[: number % len(WHOLE)])

    threads = [threading.Thread(target=hang_up, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.post({"text": "w5"}).status == 200
    assert service.metric("hf_distill_worker_restarts_total") == restarts
    assert not service.said("Traceback")
