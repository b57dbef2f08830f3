"""How the tests read answers of the service."""

import io

import pytest

from tests.serving.running import Answer, read_answer

BODY = b'{"label": "good", "score": 0.75}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Model-Name: bert\r\n\r\n" % len(BODY) + BODY
REFUSAL = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 2\r\n\r\n{}"


class Pieces(io.RawIOBase):
    """Behaves like a socket: returns the bytes that have arrived, whatever answer they belong to."""

    def __init__(self, content, size):
        self.content, self.size = content, size

    def readable(self):
        return True

    def readinto(self, buffer):
        piece, self.content = self.content[: self.size], self.content[self.size :]
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("size", [1, 7, ANSWER.index(BODY), len(ANSWER), 10_000])
def test_an_answer_is_read_whole_in_however_many_pieces_it_arrives(size):
    """Headers and body may arrive separately, and two answers together."""
    stream = io.BufferedReader(Pieces(ANSWER + ANSWER + REFUSAL, size))
    headers = {"content-length": "32", "x-model-name": "bert"}
    assert read_answer(stream) == read_answer(stream) == Answer(200, headers, BODY)
    assert read_answer(stream) == Answer(408, {"content-length": "2"}, b"{}")
    assert read_answer(stream) is None


def test_half_an_answer_is_none():
    with pytest.raises(AssertionError, match="31 of 32 bytes"):
        read_answer(io.BufferedReader(Pieces(ANSWER[:-1], 10_000)))
