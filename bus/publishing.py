"""nats-py's way of sending a message, without its two copies of what is sent.

nats-py joins head, payload and end of each message before its socket does so again. Here a large one goes to the
connection's list of what is to be written in parts, which the event loop hands to the system as they are. A small one
is spared four calls on its way to that list, and mostly the flusher (:meth:`LastingClient.flush_soon`). Everything else
is nats-py's: its limits, what is written again after a reconnection. Source of the protocol:
https://docs.nats.io/reference/reference-protocols/nats-protocol, "PUB".
"""

from __future__ import annotations

import asyncio
import time

from nats.aio.client import Client
from nats.errors import ConnectionReconnectingError

from llmlb.bus.lasting_client import LastingClient

LARGE_BYTES = 4096
"""From here on a copy costs more than two further parts of a write."""
HEAD_MOST = 32
"""Bytes around subject, reply and payload, at the most."""
FLUSH_S = 10.0
"""So long a sender waits while more than the connection's limit is to be written; as nats-py's ``flush_timeout``."""
LOOK_S = 0.1
"""How soon such a sender notices that the connection is gone."""
_END = b"\r\n"


async def publish(client: LastingClient, subject: str, data: bytes, reply: str) -> None:
    """As ``client.publish`` with these arguments: the same effect, the same errors."""
    if publish_now(client, subject, (data,), reply):
        return
    if (
        not client.is_connected
        or client.is_draining_pubs
        or len(data) > client.max_payload
        or client._flush_queue is None
    ):
        await client.publish(subject, data, reply=reply)
        return
    _write(client, subject, (data,), reply, len(data))
    if 0 < client._max_pending_size < client._pending_data_size:
        await _flushed(client, client._flush_queue)
    if client._flush_queue.empty():
        await client._flush_pending()


async def _flushed(client: Client, queue: asyncio.Queue[asyncio.Future[None]]) -> None:
    """Wait until what is to be written was, or for FLUSH_S. Raises ConnectionReconnectingError when the bus goes away.

    Not nats-py's: that one waits all the time for a connection that is not there any more, and says nothing.
    """
    done = asyncio.get_running_loop().create_future()
    await queue.put(done)
    until = time.monotonic() + FLUSH_S
    while not done.done() and time.monotonic() < until and client.is_connected:
        await asyncio.wait([done], timeout=LOOK_S)
    if not client.is_connected:
        raise ConnectionReconnectingError


def publish_now(client: LastingClient, subject: str, data: tuple[bytes | memoryview, ...], reply: str) -> bool:
    """The same where nothing has to be waited for, as is mostly so. False: nothing was sent.

    ``data``: the pieces of the message. What is published in one step of the event loop is written at once.
    """
    size, queue, flusher = 0, client._flush_queue, client._flusher_task
    for piece in data:
        size += len(piece)
    if (
        client._status != Client.CONNECTED
        or size > client.max_payload
        or queue is None
        or flusher is None
        or flusher.done()
        or 0 < client._max_pending_size < client._pending_data_size + size + len(subject) + len(reply) + HEAD_MOST
    ):
        return False
    _write(client, subject, data, reply, size)
    client.flush_soon()
    return True


def _write(client: Client, subject: str, data: tuple[bytes | memoryview, ...], reply: str, size: int) -> None:
    """Into what is sent next. ``size``: of all pieces."""
    head = f"PUB {subject} {reply} {size}\r\n".encode()
    stats = client.stats
    stats["out_msgs"] += 1
    stats["out_bytes"] += size
    if size < LARGE_BYTES:
        client._pending.append(b"".join((head, *data, _END)))
    else:
        client._pending += (head, *data, _END)  # type: ignore[arg-type]  # transports take any buffers
    client._pending_data_size += len(head) + size + len(_END)
