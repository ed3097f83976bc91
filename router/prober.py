"""Finds out within half a second that the process behind a stream is gone.

A node that is killed says no goodbye, but the bus knows: nobody listens on its subjects any more. So when a stream is
silent, its node is asked on the subject for cancellations (with an empty request id, which older versions ignore too);
the bus itself answers "no responders". A node that lives and has nothing to say is not disturbed by it. What the bus
can't know, a cut cable or a stopped process, shows in missing heartbeats. A node that is part of this very process is
not asked: it ends with it.
"""

from __future__ import annotations

from collections.abc import Callable

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import NodeLost
from llmlb.bus.messages.infer import CancelRequest
from llmlb.router.inbox import Inbox

QUIET_S = 0.25
"""Silence of a stream from which on its node is asked."""
UNHEARD_S = 3.0
"""Silence of a stream whose node sends no heartbeats either, after which the node counts as gone."""
MARK = "probe-"
"""Begins the reply stream of a probe; the node's id follows."""


class Prober:
    """Watches the streams of one gateway process. ``suspect`` tells whether a node's heartbeats are missing."""

    def __init__(self, bus: Bus, gateway_id: str, suspect: Callable[[str], bool]) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self._suspect = suspect
        self._streams: dict[str, set[Inbox]] = {}
        self.here: Callable[[str], bool] = lambda _: False
        """Whether a node is part of this process, and on the bus."""

    def watch(self, node_id: str, inbox: Inbox) -> None:
        streams = self._streams.get(node_id)
        if streams is None:
            self._streams[node_id] = {inbox}
        else:
            streams.add(inbox)

    def unwatch(self, node_id: str, inbox: Inbox) -> None:
        streams = self._streams.get(node_id)
        if streams is not None:
            streams.discard(inbox)
            if not streams:
                del self._streams[node_id]

    def gone(self, node_id: str, why: str = "nobody answers for the node") -> None:
        """Every stream of this node fails."""
        for inbox in self._streams.get(node_id, ()):
            inbox.fail(NodeLost(why))

    def look(self, now: float) -> None:
        """Ask after the silent ones, with the bus there; ``now`` is of the monotonic clock. To be called each 0.25 s.

        A bus that takes no more at the moment is asked the next time.
        """
        for node_id, inboxes in list(self._streams.items()):
            heard = min((inbox.heard_at for inbox in inboxes), default=now)
            if now - heard < QUIET_S:
                continue
            if now - heard >= UNHEARD_S and self._suspect(node_id):
                why = f"not heard of for {UNHEARD_S:.0f} s"
                for inbox in list(inboxes):
                    if now - inbox.heard_at >= UNHEARD_S:
                        inbox.fail(NodeLost(why))
            elif not self.here(node_id):
                reply = subjects.reply(self._gateway_id, MARK + node_id)
                self._bus.publish_now(subjects.cancel(node_id), codec.encode(CancelRequest(request_id="")), reply=reply)
