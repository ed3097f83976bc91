"""nats-py's parser with a short way for messages: most of what a chunk costs between the socket and its reader.

nats-py matches a regular expression for each message, fills a dict, and goes through four coroutines and a queue. Here
a message that lies whole in what was read is cut out with two searches, and one of a *straight* subscription goes to
its callback at once (measured on 2 cores: 2 µs a message instead of 10), mostly within the socket's own reading
(:mod:`llmlb.bus.direct_transport`). Whatever is not a whole message, the rest of the protocol and anything malformed is
left to nats-py's own parser, with all of its rules.
Source of the protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol, "MSG".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, MAX_CONTROL_LINE_SIZE, Parser

log = logging.getLogger("llmlb.bus.fast_parser")

Straight = Callable[[str, bytes, Mapping[str, str] | None], None]
"""Called with (subject, data, headers) of each message; must not wait. What it raises is logged."""

TAKE_MOST = 65536
"""Bytes of one read that are worked on at once. More is left to nats-py's reader: while that works, the socket is not
read without end, and others of the event loop have their turn."""
_CRLF = b"\r\n"


class FastParser(Parser):
    """In place of ``client._ps``."""

    def __init__(self, client: Client) -> None:
        self.straight: dict[bytes, Straight] = {}
        """By the subscription's number as the server writes it; it outlives reconnections."""
        self._resets = 0
        self._said = False
        super().__init__(client)

    def reset(self) -> None:
        self._resets += 1
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        """Work on what was read. Raises nats.errors.ProtocolError, as nats-py's does."""
        if self.buf or self.state != AWAITING_CONTROL_LINE:
            data = await self._completed(data)
        at, end, resets = 0, len(data), self._resets
        while (at := self._straight_ones(data, at)) < end:
            line_end = data.find(_CRLF, at)
            if line_end == -1:
                break
            fields = data[at:line_end].split()
            begin = after = line_end + 2
            op = fields[0] if fields else b""
            if op == b"MSG" or op == b"HMSG":
                size = fields[-1]
                if not 4 <= len(fields) <= 6 or not size.isdigit() or begin - at > MAX_CONTROL_LINE_SIZE:
                    break  # nats-py says what is wrong with it; int() refuses what has thousands of digits
                after += int(size) + 2
                if after > end:
                    break
            if op == b"MSG" and len(fields) <= 5:
                await self._message(fields, data[begin : after - 2])
            else:
                await self._theirs(data[at:after])
            if self._resets != resets:
                return  # the connection this was read from is gone
            at = after
        if at < end:
            await self._theirs(data[at:])

    def take(self, data: bytes) -> bytes:
        """Work on the beginning of what was read, as far as that needs no waiting; the rest. Never raises.

        Only where nothing that came before waits for :meth:`parse`, and while the connection is as it should be.
        """
        if self.buf or self.state != AWAITING_CONTROL_LINE or len(data) > TAKE_MOST:
            return data
        if self.nc._status != Client.CONNECTED:
            return data
        at = self._straight_ones(data, 0)
        return data[at:] if at < len(data) else b""

    def _straight_ones(self, data: bytes, at: int) -> int:
        """Hand over the messages of straight subscriptions that lie whole in ``data`` from ``at`` on, up to the first
        that is something else: where that begins."""
        straight, stats, end = self.straight, self.nc.stats, len(data)
        while (line_end := data.find(_CRLF, at)) != -1:
            fields = data[at:line_end].split()
            count, begin = len(fields), line_end + 2
            if count < 4 or (callback := straight.get(fields[2])) is None:
                break
            if not fields[-1].isdigit() or begin - at > MAX_CONTROL_LINE_SIZE:  # as above
                break
            stop = begin + int(fields[-1])
            if stop + 2 > end:
                break
            headers = None
            if fields[0] == b"MSG" and count <= 5:
                payload = data[begin:stop]
            elif fields[0] == b"HMSG" and 5 <= count <= 6 and fields[-2].isdigit():
                body = begin + int(fields[-2])
                headers, payload = headers_of(data[begin : min(body, stop)]), data[body:stop]
            else:
                break
            stats["in_msgs"] += 1
            stats["in_bytes"] += stop - begin
            at = stop + 2
            try:
                callback(fields[1].decode("utf-8", "replace"), payload, headers)
            except (Exception, asyncio.CancelledError):  # the top of a callback; no task is cancelled here
                log.exception("callback_failed subject=%s", fields[1].decode("utf-8", "replace"))
        return at

    async def _theirs(self, data: bytes) -> None:
        """nats-py's parser. What one message raises there, such as a subject that is no text, ends only that message:
        its reader would end, and nothing be heard until the server gives this connection up."""
        while True:
            before = len(self.buf) + len(data)
            try:
                await super().parse(data)
                return
            except (ProtocolError, OSError):
                raise  # the reader connects anew
            except Exception:  # noqa: BLE001 - logged there; anybody may have sent it
                self._unreadable()
            data = b""
            if len(self.buf) >= before:
                raise ProtocolError("nats: unreadable")
            if not self.buf:
                return

    def _unreadable(self) -> None:
        """Said once: a peer may send these without end."""
        log.log(logging.DEBUG if self._said else logging.WARNING, "bus_message_unreadable", exc_info=True)
        self._said = True

    async def _completed(self, data: bytes) -> bytes:
        """What is left of the data once what nats-py's parser holds of a message is whole, or was taken back."""
        if self.state == AWAITING_MSG_PAYLOAD:
            missing = self.needed + 2 - len(self.buf)
            await self._theirs(data[:missing])
            return data[missing:]
        data = bytes(self.buf) + data
        self.buf.clear()
        return data

    async def _message(self, fields: list[bytes], payload: bytes) -> None:
        """``MSG <subject> <sid> [reply-to] <bytes>`` of a subscription that is not straight."""
        reply = fields[3] if len(fields) == 5 else b""
        try:
            await self.nc._process_msg(int(fields[2]), fields[1], reply, payload, None)
        except (ProtocolError, OSError):
            raise
        except Exception:  # noqa: BLE001 - as in _theirs
            self._unreadable()


def headers_of(block: bytes) -> dict[str, str]:
    """Headers as nats-py gives them, at a tenth of what the parser of e-mail costs that it reads them with.

    ``NATS/1.0 503`` has its status in ``Status``. Source: ADR-4 of the NATS project.
    """
    first, *lines = block.decode(errors="replace").split("\r\n")
    headers = {}
    if status := first[len("NATS/1.0") :].strip():
        headers["Status"] = status[:3]
        if description := status[3:].strip():
            headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


def hand_over(callback: Straight, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
    """Call it. What it raises is logged: the connection must go on reading."""
    try:
        callback(subject, data, headers)
    except (Exception, asyncio.CancelledError):  # the top of a callback; no task is cancelled here
        log.exception("callback_failed subject=%s", subject)


class StraightQueue(asyncio.Queue[Msg]):
    """In place of the queue of a straight subscription, for what comes through nats-py's parser: never filled."""

    def __init__(self, subscription: Subscription, callback: Straight) -> None:
        super().__init__()
        self._subscription = subscription
        self._callback = callback

    def put_nowait(self, item: Msg) -> None:
        self._subscription._pending_size = 0
        hand_over(self._callback, item.subject, item.data, item.headers)
