"""All replies to one gateway process: one wildcard subscription, and an inbox for each attempt under way."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusError, LlmlbError, NodeLost
from llmlb.router.inbox import Inbox, Nobody
from llmlb.router.prober import MARK

LATE_S = 1.0
"""A look that comes so much later than it should: this process stood still, and what it missed is still to be read."""


class Replies:
    """``gone`` is called with the id of a node when the bus says that nobody listens there any more."""

    def __init__(self, bus: Bus, gone: Callable[[str], None]) -> None:
        self.gateway_id = uuid.uuid4().hex
        self._bus = bus
        self._gone = gone
        self._prefix = subjects.reply(self.gateway_id, "0").removesuffix("0")
        self._inboxes: dict[str, Inbox] = {}
        self._numbers = itertools.count()
        self._looked_at: float | None = None
        self._late = False
        """The last look was left out; two in a row are not, or a slow machine would never find anything out."""

    async def start(self) -> None:
        """Begin to listen. Raises BusDown."""
        await self._bus.subscribe_straight(subjects.all_replies(self.gateway_id), self._on_reply)

    def open(self, key: str = "") -> tuple[str, Inbox]:
        """A new inbox and its name; :meth:`close` it. ``key``: whose request it is for."""
        if not self._inboxes:
            self._looked_at = None  # nobody had to look meanwhile
        name = str(next(self._numbers))
        inbox = self._inboxes[name] = Inbox(key)
        return name, inbox

    def close(self, name: str) -> None:
        del self._inboxes[name]

    def subject(self, name: str) -> str:
        """Where replies to this inbox go."""
        return self._prefix + name

    def fail_all(self, error: Callable[[], LlmlbError]) -> None:
        for inbox in list(self._inboxes.values()):
            inbox.fail(error())

    def fail_of(self, key: str, error: Callable[[], LlmlbError]) -> None:
        """Those of one key or user."""
        for inbox in [one for one in self._inboxes.values() if one.key == key]:
            inbox.fail(error())

    def look(self, now: float, stall_s: float) -> None:
        """Find out who is silent for too long. To be called several times a second."""
        self._late = not self._late and self._looked_at is not None and now - self._looked_at > LATE_S
        self._looked_at = now
        if not self._late:
            for inbox in self._inboxes.values():
                inbox.look(now, stall_s)

    def _on_reply(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        name = subject[len(self._prefix) :]
        if not data:
            if headers and headers.get("Status") == "503":
                self._nobody(name)
            return
        inbox = self._inboxes.get(name)
        if inbox is None:
            return  # of a request that is over
        try:
            inbox.put(codec.decode_reply(data))
        except BusError as error:
            inbox.fail(NodeLost("an answer that can't be read", detail=error.detail))

    def _nobody(self, name: str) -> None:
        """The bus says that nobody listens where a request or a probe went."""
        if name.startswith(MARK):
            self._gone(name[len(MARK) :])
        elif (inbox := self._inboxes.get(name)) is not None:
            inbox.fail(Nobody("nobody answers for the node"))
