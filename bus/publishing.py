"""nats-py's way of sending a message, without its two copies of what is sent.

nats-py joins head, payload and end of each message before its socket does so again. Here a large one goes to the
connection's list of what is to be written in parts, which the event loop hands to the system as they are. A small one
is spared four calls on its way to that list. Everything else is nats-py's: the flusher, its limits, what is written
again after a reconnection. Source of the protocol:
https://docs.nats.io/reference/reference-protocols/nats-protocol, "PUB".
"""

from __future__ import annotations

from nats.aio.client import Client

LARGE_BYTES = 4096
"""From here on a copy costs more than two further parts of a write."""
_END = b"\r\n"


async def publish(client: Client, subject: str, data: bytes, reply: str) -> None:
    """As ``client.publish`` with these arguments: the same effect, the same errors."""
    if (
        not client.is_connected
        or client.is_draining_pubs
        or len(data) > client.max_payload
        or client._flush_queue is None
    ):
        await client.publish(subject, data, reply=reply)
        return
    head = f"PUB {subject} {reply} {len(data)}\r\n".encode()
    client.stats["out_msgs"] += 1
    client.stats["out_bytes"] += len(data)
    if len(data) < LARGE_BYTES:
        client._pending.append(b"%b%b\r\n" % (head, data))
    else:
        client._pending += (head, data, _END)
    client._pending_data_size += len(head) + len(data) + len(_END)
    if 0 < client._max_pending_size < client._pending_data_size:
        await client._flush_pending(force_flush=True)
    if client._flush_queue.empty():
        await client._flush_pending()
