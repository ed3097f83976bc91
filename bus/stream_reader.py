"""Read a stream from any place on, without a consumer: for projections that keep their place themselves.

Batched direct gets (nats-server ≥ 2.11, ADR-31): nothing of ours is left on the bus, nothing has to be made again after
an outage, and any number of readers cost the bus nothing while they don't ask. A batch is checked: the server says with
each message which one came before it, so one that was dropped on the way ends the batch there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import nats.errors
import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, BusDown, BusError, DeadlineExceeded

SILENCE_S = 5.0
"""Nothing for so long in the middle of a batch: it is given up."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream. ``created`` tells it from one of the same name that was made later."""

    created: str
    first_sequence: int
    last_sequence: int
    now: float
    """The bus's clock when it answered, Unix seconds."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of the stream."""

    sequence: int
    stored_at: float
    """Unix seconds of the bus's clock."""
    data: bytes


class _Batch:
    """The replies to one question."""

    def __init__(self) -> None:
        self.messages: list[StoredMessage] = []
        self.over = asyncio.Event()
        self.status = ""
        self.heard_at = time.monotonic()
        self._broken = False

    def add(self, data: bytes, headers: Mapping[str, str]) -> None:
        """The next reply. Raises KeyError, ValueError for what is none."""
        self.heard_at = time.monotonic()
        if "Nats-Sequence" not in headers:
            self.status = headers.get("Status", "")
            self.over.set()
            return
        before = int(headers.get("Nats-Last-Sequence", 0))
        self._broken |= bool(self.messages) and before != self.messages[-1].sequence
        if not self._broken:
            self.messages.append(StoredMessage(int(headers["Nats-Sequence"]), _unix(headers["Nats-Time-Stamp"]), data))


class StreamReader:
    """Reads one stream; one question at a time. Needs no closing beyond its bus's."""

    def __init__(self, bus: Bus, stream: str, subject: str) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._news: Subscription | None = None
        self._numbers = itertools.count()
        self._batches: dict[str, _Batch] = {}

    async def state(self) -> StreamState:
        """The stream now. Raises BusDown (also when there is no such stream), DeadlineExceeded, BusError."""
        if not self._bus.connected:
            raise BusDown("the bus is away")
        try:
            msg = await self._bus.client.request(f"$JS.API.STREAM.INFO.{self._stream}", b"", timeout=SILENCE_S)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise map_nats_error(error) from error
        body = orjson.loads(msg.data)
        if "error" in body:
            raise BusDown(f"there is no stream {self._stream}", detail=str(body["error"]))
        state = body["state"]
        now = _unix(body["ts"]) if "ts" in body else time.time()
        return StreamState(body["created"], state["first_seq"], state["last_seq"], now)

    async def read(self, after: int, most: int, max_bytes: int) -> list[StoredMessage]:
        """Up to ``most`` messages that follow number ``after``; [] at the stream's end. Raises as :meth:`state`."""
        return await self._ask({"batch": most, "max_bytes": max_bytes, "seq": after + 1})

    async def read_since(self, moment: float, most: int, max_bytes: int) -> list[StoredMessage]:
        """As :meth:`read`, from the first message stored at ``moment`` (Unix seconds) or later."""
        text = datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
        return await self._ask({"batch": most, "max_bytes": max_bytes, "start_time": text})

    async def watch(self, stored: Callable[[], None]) -> None:
        """Call ``stored`` once, with the next message that is sent to the stream by anybody. Raises BusDown.

        It costs the bus one copy of that message. A message that comes in this very moment may be in neither this
        nor the answer to a question that was asked before: ask once more some time later. Replaces the last watch.
        """
        await self.unwatch()

        async def told(_: Msg) -> None:
            stored()

        self._news = await self._bus.subscribe(self._subject, told, pending_messages=1)
        try:
            await self._news.unsubscribe(limit=1)
        except (nats.errors.Error, OSError) as error:
            raise map_nats_error(error) from error

    async def unwatch(self) -> None:
        """Nobody waits for the next message any more. Never raises."""
        news, self._news = self._news, None
        if news is not None:
            with contextlib.suppress(nats.errors.Error, OSError):  # it had its message, or the connection is gone
                await news.unsubscribe()

    async def _ask(self, question: dict[str, object]) -> list[StoredMessage]:
        await self._listen()
        number = str(next(self._numbers))
        batch = self._batches[number] = _Batch()
        try:
            await self._bus.publish_bytes(
                f"$JS.API.DIRECT.GET.{self._stream}",
                json.dumps({**question, "next_by_subj": self._subject}).encode(),
                reply=f"{self._inbox}.{number}",
            )
            await self._wait(batch)
        finally:
            del self._batches[number]
        if batch.status == "503":
            raise BusDown(f"there is no stream {self._stream}, or it can't be read directly")
        if batch.status not in ("204", "404"):
            raise BusError("the bus refused to read the stream", detail=f"status {batch.status}")
        return batch.messages

    async def _listen(self) -> None:
        """One subscription for all questions; it outlives reconnections."""
        if self._subscription is None:
            self._inbox = self._bus.client.new_inbox()
            self._subscription = await self._bus.subscribe_straight(f"{self._inbox}.*", self._on_reply)

    def _on_reply(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        batch = self._batches.get(subject.rsplit(".", 1)[1])
        if batch is None:
            return  # of a question that was given up
        try:
            batch.add(data, headers or {})
        except (KeyError, ValueError) as error:
            raise BadMessage("not an answer to a direct get", detail=str(error)) from error

    @staticmethod
    async def _wait(batch: _Batch) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    await batch.over.wait()
                return
            except TimeoutError:
                if time.monotonic() - batch.heard_at >= SILENCE_S:
                    raise DeadlineExceeded("the bus did not answer in time") from None


def _unix(text: str) -> float:
    """Unix seconds of a time as the server writes it; it gives nanoseconds, which are cut."""
    return datetime.fromisoformat(text).timestamp()
