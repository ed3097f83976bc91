"""Frames between the node agent and its worker, over a socket pair.

A frame is ``length:u32 kind:u8 handle:u64`` (little-endian, length counts the payload) and the payload. The worker
makes the bytes that go onto the bus, so the agent forwards them without looking inside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

_HEADER = struct.Struct("<IBQ")
HEADER_BYTES = _HEADER.size
MAX_FRAME_BYTES = 192 * 1024 * 1024


class Kind(IntEnum):
    """What a frame carries."""

    CONTROL = 0
    """Both ways: a JSON object with ``op``: load; loading, loaded, load_failed, capabilities, alive."""
    SUBMIT = 1
    """To the worker: next sequence number (u32), then an InferRequest as it came from the bus."""
    CANCEL = 2
    """To the worker: empty."""
    CHUNK = 3
    """To the agent: one reply of the inference stream, more follow."""
    LAST = 4
    """To the agent: the last reply (end or failed); the slot is free."""


def pack(kind: Kind, handle: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return _HEADER.pack(len(payload), kind, handle) + payload


class FrameReader:
    """Puts frames together from whatever pieces the socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, int, bytes]]:
        """The frames completed by ``data``. Raises ValueError on a frame that can't be."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= HEADER_BYTES:
                length, kind, handle = _HEADER.unpack_from(self._buffer, position)
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                if len(self._buffer) - position - HEADER_BYTES < length:
                    break
                start = position + HEADER_BYTES
                position = start + length
                yield Kind(kind), handle, bytes(self._buffer[start:position])
        finally:
            del self._buffer[:position]
