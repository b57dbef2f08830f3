"""Messages between a service and its workers: four bytes for the length, then JSON.

JSON instead of pickle, so that no message can run code.
"""

import asyncio
import json
from typing import Any, BinaryIO

LENGTH_BYTES = 4


def encode_message(content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """Reads the next message. Returns None if the stream has ended, even within a message."""
    header = stream.read(LENGTH_BYTES)
    length = int.from_bytes(header, "big")
    body = stream.read(length)
    return json.loads(body) if len(header) == LENGTH_BYTES and len(body) == length else None


async def receive_message(stream: asyncio.StreamReader) -> dict[str, Any]:
    """Waits for the next message.

    Raises:
        asyncio.IncompleteReadError: if the stream ends before the message does.
    """
    header = await stream.readexactly(LENGTH_BYTES)
    return json.loads(await stream.readexactly(int.from_bytes(header, "big")))
