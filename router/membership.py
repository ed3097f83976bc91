"""Who is in the cluster, and in which state: a pure state machine, heartbeats and time in, transitions out.

::

    (first heartbeat) → pending → registering → online → offline → registering …
                          approved   all models    30 s without    heartbeat
                                     ready         a heartbeat,
                                                   or goodbye

A node that is online stays online when another model is registered for it: it serves what it has, and pulls meanwhile.
One whose approval is taken back is pending again. Inside ``online`` a node is *suspect* after three missed heartbeats,
or when nobody answered on its subject: it keeps its state but gets no new work until the next heartbeat. No I/O, no
clock: ``now`` is passed in, in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmlb.bus.messages.events import NodeState

OFFLINE_AFTER_S = 30.0
SUSPECT_AFTER_S = 3.0
"""Three heartbeats of one second."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A node changed its state. ``before`` None: first seen."""

    node_id: str
    before: NodeState | None
    after: NodeState
    reason: str


@dataclass(slots=True)
class _Member:
    state: NodeState
    approved: bool
    last_beat: float | None
    lost: bool = False


class Membership:
    """The states of all nodes. Methods return what changed."""

    def __init__(self, *, offline_after_s: float = OFFLINE_AFTER_S, suspect_after_s: float = SUSPECT_AFTER_S) -> None:
        self._offline_after_s = offline_after_s
        self._suspect_after_s = suspect_after_s
        self._members: dict[str, _Member] = {}

    def decide(self, node_id: str, *, approved: bool, reason: str = "") -> list[Transition]:
        """Whether it may work. A node that was not heard yet is known from now on, and offline until it is."""
        member = self._members.get(node_id)
        if member is None:
            self._members[node_id] = _Member("offline", approved, None)
            return []
        member.approved = approved
        if approved and member.state == "pending":
            return self._move(node_id, member, "registering", reason or "approved")
        if not approved and member.state in ("registering", "online"):
            return self._move(node_id, member, "pending", reason or "is not approved any more")
        return []

    def heartbeat(
        self, node_id: str, now: float, *, approved: bool, ready: int, total: int, leaving: bool = False
    ) -> list[Transition]:
        """A node was heard. ``approved`` is whether it may work, as known now."""
        member = self._members.get(node_id)
        out: list[Transition] = []
        if member is None:
            if leaving:
                return out
            member = self._members[node_id] = _Member("pending", approved, now)
            out.append(Transition(node_id, None, "pending", "first heartbeat"))
        member.approved = approved
        if leaving:
            member.last_beat = None
            return out + self._move(node_id, member, "offline", "said goodbye")
        member.last_beat = now
        member.lost = False
        if not member.approved:
            return out + self._move(node_id, member, "pending", "waits for approval")
        if member.state in ("pending", "offline"):
            reason = "approved" if member.state == "pending" else "heard again"
            out += self._move(node_id, member, "registering", reason)
        if member.state == "registering" and ready >= total:
            out += self._move(node_id, member, "online", f"{ready} of {total} models ready")
        return out

    def restarted(self, node_id: str) -> list[Transition]:
        """Another process is this node now: it has to be ready anew."""
        member = self._members.get(node_id)
        if member is None or member.state != "online":
            return []
        return self._move(node_id, member, "registering", "started again")

    def lost(self, node_id: str) -> None:
        """Nobody answers on its subject: suspect until the next heartbeat."""
        if (member := self._members.get(node_id)) is not None:
            member.lost = True

    def forget(self, node_id: str) -> None:
        """It was removed; heard again, it is new."""
        self._members.pop(node_id, None)

    def tick(self, now: float) -> list[Transition]:
        """Time has passed, in which heartbeats could be heard: see :meth:`deaf`."""
        out: list[Transition] = []
        for node_id, member in self._members.items():
            if member.state == "offline" or member.last_beat is None:
                continue
            silence = now - member.last_beat
            if silence >= self._offline_after_s:
                out += self._move(node_id, member, "offline", f"no heartbeat for {silence:.0f} s")
        return out

    def until_next(self, now: float) -> float:
        """Seconds until a node that is not heard any more is another thing than now; inf: none ever."""
        limits = (self._suspect_after_s, self._offline_after_s)
        heard = [m.last_beat for m in self._members.values() if m.state != "offline" and m.last_beat is not None]
        return min((at + limit - now for at in heard for limit in limits if at + limit > now), default=math.inf)

    def deaf(self, now: float) -> None:
        """Until now nothing could be heard (the bus was away, this process slept): that was no node's fault.

        Every node is suspect until its next heartbeat, and has the usual time for that.
        """
        for member in self._members.values():
            if member.last_beat is not None:
                member.last_beat = max(member.last_beat, now - self._suspect_after_s)

    def _move(self, node_id: str, member: _Member, after: NodeState, reason: str) -> list[Transition]:
        if member.state == after:
            return []
        before, member.state = member.state, after
        return [Transition(node_id, before, after, reason)]

    def nodes(self) -> list[str]:
        return list(self._members)

    def state(self, node_id: str) -> NodeState | None:
        """None for a node never heard of."""
        member = self._members.get(node_id)
        return None if member is None else member.state

    def approved(self, node_id: str) -> bool:
        member = self._members.get(node_id)
        return member is not None and member.approved

    def suspect(self, node_id: str, now: float) -> bool:
        """True: online, but not heard of lately. Such a node gets no new work."""
        member = self._members.get(node_id)
        if member is None or member.state != "online":
            return False
        return member.lost or member.last_beat is None or now - member.last_beat >= self._suspect_after_s
