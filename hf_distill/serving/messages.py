"""Messages between a service and its workers: four bytes with the length, then JSON. No pickle, so no code."""

import asyncio
import json
from typing import Any, BinaryIO

LENGTH_BYTES = 4


def encode_message(content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message; None where the stream has ended, be it in the middle of one."""
    header = stream.read(LENGTH_BYTES)
    length = int.from_bytes(header, "big")
    body = stream.read(length)
    return json.loads(body) if len(header) == LENGTH_BYTES and len(body) == length else None


async def receive_message(stream: asyncio.StreamReader) -> dict[str, Any]:
    """The next message.

    Raises:
        asyncio.IncompleteReadError: if the stream ends before it does.
    """
    header = await stream.readexactly(LENGTH_BYTES)
    return json.loads(await stream.readexactly(int.from_bytes(header, "big")))
