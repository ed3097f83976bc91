"""What the clients of ``/v0/ws`` are sent: the events of the log, each with its id, and news that is not kept.

A client costs a place in the log, not a copy of it. One that does not read falls behind, and is dropped at
``MOST_BEHIND`` events; of what is not kept (progress, whether the bus is there) it has the latest only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from llmlb.bus.messages.base import Message
from llmlb.bus.messages.events import (
    ClusterModelReady,
    ClusterModelRegistered,
    ClusterModelRemoved,
    ClusterTaskChanged,
    NodeStateChanged,
)
from llmlb.router.live_log import EventLog, Told

log = logging.getLogger("llmlb.router.live_feed")

PROTOCOL = 1
MOST_BEHIND = 1_000
"""Events that a client may not have read, beside what is in its connection; after that it is dropped."""
MOST_CLIENTS = 2_000
BATCH = 100
KINDS: dict[type[Message], str] = {
    NodeStateChanged: "node_changed",
    ClusterModelRegistered: "model_registered",
    ClusterModelReady: "model_ready",
    ClusterModelRemoved: "model_removed",
    ClusterTaskChanged: "task_changed",
}
"""What the events of the stream are called there."""
PERMISSIONS = {kind: "nodes" if kind == "node_changed" else "models.read" for kind in KINDS.values()}
"""What a key needs for each."""
READ_AGAIN = ("/v0/nodes", "/v0/models/hub", "/v0/tasks")
BUS = "bus"


def envelope(kind: str, data: Any, *, seq: int | None = None, at: float | None = None) -> str:
    """One message. ``seq`` None: it is not kept, and nobody can go on after it."""
    body = {"v": PROTOCOL, "id": seq, "type": kind, "at": time.time() if at is None else at, "data": data}
    return orjson.dumps(body).decode()


def data_of(event: Message) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"type", "sent_at"})


def text_of(told: Told) -> str:
    """Made once for all clients."""
    if not told.text:
        event = told.event
        told.text = envelope(KINDS[type(event)], data_of(event), seq=told.seq, at=event.sent_at)
    return told.text


class Feed:
    """One client's. :meth:`next` until ``slow``, then :meth:`close`."""

    def __init__(self, feeds: Feeds, kinds: frozenset[str], after: int | None, stream: str | None) -> None:
        self._feeds, self.kinds = feeds, kinds
        self._after, self._stream = after, stream
        self._place: int | None = None
        """The id up to which the client was sent everything; None: the log was not read yet."""
        self._of = ""
        self._greeted = self._caught_up = False
        self._side: dict[str, str] = {}
        """Not kept, by what it is about: as many as there are downloads, and one."""
        self._wake = asyncio.Event()
        self.slow = asyncio.Event()
        """It is too far behind."""

    async def next(self) -> list[str]:
        """The next messages, at least one. Waits for them."""
        while not (found := self._found()):
            self._wake.clear()
            await self._wake.wait()
        return found

    def close(self) -> None:
        self._feeds.drop(self)

    def push(self, about: str, text: str) -> None:
        """Something that is not kept; what was said of the same before and not sent is dropped."""
        self._side[about] = text
        self._wake.set()

    def told(self, told: Told, about: str | None) -> None:
        """The log has one more; what is not kept and was said before about the same is old."""
        if about is not None:
            self._side.pop(about, None)
        behind = self._caught_up and self._place is not None and told.seq - self._place > self._feeds.most_behind
        if behind and self._feeds.log.count_after(self._place or 0) > self._feeds.most_behind:
            self.slow.set()
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def _found(self) -> list[str]:
        source, out = self._feeds.log, list[str]()
        begun = self._begin(source) if self._place is None or self._of != source.stream else []
        if not self._greeted:
            self._greeted = True
            out.append(self._feeds.hello(self.kinds, self._place if not begun else None))
        out += begun
        if self._place is not None and source.loaded:
            out += self._events(source, self._place)
        if self._caught_up or self._place is None:
            out += self._side.values()
            self._side.clear()
        return out

    def _begin(self, source: EventLog) -> list[str]:
        """Find the place in the log. A message when the client has to begin anew."""
        if not source.loaded:
            return []
        before, self._of = self._of, source.stream
        after = self._after
        if self._place is None and after is None:
            self._place = source.last
            return []
        other = bool(before) or self._stream not in (None, source.stream)
        if not other and after is not None and source.floor <= after <= source.last:
            self._place = after
            return []
        return [
            self._reset(source, "another stream" if other else "too old" if (after or 0) < source.floor else "unknown")
        ]

    def _reset(self, source: EventLog, reason: str) -> str:
        self._place = source.last
        return envelope("reset", {"reason": reason, "read": READ_AGAIN, "stream": source.stream}, seq=source.last)

    def _events(self, source: EventLog, place: int) -> list[str]:
        if place < source.floor:
            return [self._reset(source, "too old")]
        entries = source.after(place, BATCH)
        self._caught_up = len(entries) < BATCH
        self._place = source.last if self._caught_up else entries[-1].seq
        return [text_of(told) for told in entries if KINDS.get(type(told.event)) in self.kinds]


class Feeds:
    """All clients of this process."""

    def __init__(
        self, source: EventLog, version: str, connected: Callable[[], bool], *, most_behind: int = MOST_BEHIND
    ) -> None:
        self.log, self._version, self._connected, self.most_behind = source, version, connected, most_behind
        self._feeds: set[Feed] = set()
        self.any = asyncio.Event()
        """There is a client."""
        source.on_event.append(self._on_event)
        source.on_loaded.append(self._wake_all)

    def __len__(self) -> int:
        return len(self._feeds)

    def open(self, kinds: Iterable[str], after: int | None, stream: str | None) -> Feed:
        """For a client that wants these types, after this id of this stream (None: from now on)."""
        feed = Feed(self, frozenset(kinds), after, stream)
        self._feeds.add(feed)
        self.any.set()
        return feed

    def drop(self, feed: Feed) -> None:
        self._feeds.discard(feed)
        if not self._feeds:
            self.any.clear()

    def say_bus(self, *, connected: bool) -> None:
        """The bus went away, or is back."""
        text = envelope("bus", {"connected": connected})
        for feed in self._feeds:
            feed.push(BUS, text)

    def say_task(self, event: ClusterTaskChanged) -> None:
        """How far a download is."""
        wanting = [feed for feed in self._feeds if "task_changed" in feed.kinds]
        if wanting:
            text = envelope("task_changed", data_of(event), at=event.task.sent_at)
            for feed in wanting:
                feed.push(event.id, text)

    def hello(self, kinds: frozenset[str], place: int | None) -> str:
        """The first message to a client."""
        return envelope(
            "hello",
            {
                "protocol": PROTOCOL,
                "version": self._version,
                "stream": self.log.stream or None,
                "bus": self._connected(),
                "types": sorted(kinds),
            },
            seq=place,
        )

    def _on_event(self, told: Told) -> None:
        about = told.event.id if isinstance(told.event, ClusterTaskChanged) else None
        for feed in self._feeds:
            feed.told(told, about)

    def _wake_all(self) -> None:
        for feed in self._feeds:
            feed.wake()
