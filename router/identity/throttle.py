"""Guessing is slow: failures make whoever fails wait, longer each time. Pure, with the time given.

An attempt counts when it begins, so that many at once are no way around; and it counts at every gateway, as they tell
each other (:mod:`llmlb.router.identity.login_sharing`).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["began", "failed", "succeeded"]
"""What happened to an attempt."""

MOST = 10_000
"""Names and peers that are remembered; the one seen longest ago is forgotten."""
FORGET_S = 3600.0
LONGEST_S = 300.0


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last: float = 0.0
    until: float = 0.0


class Throttle:
    """What somebody may fail at: ``allowed`` times freely, then after 1, 2, 4 … 300 s."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._seen: OrderedDict[str, _Failures] = OrderedDict()

    def wait_s(self, who: str, now: float) -> float:
        """How long ``who`` has to wait before another attempt; 0: not at all."""
        seen = self._seen.get(who)
        return 0.0 if seen is None else max(0.0, seen.until - now)

    def began(self, who: str, now: float) -> None:
        """An attempt begins; it counts as failed until :meth:`succeeded`."""
        seen = self._seen.pop(who, None)
        if seen is None or now - seen.last > FORGET_S:
            seen = _Failures()
        self._seen[who] = seen
        seen.count += 1
        self._punish(seen, now)
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)

    def _punish(self, seen: _Failures, now: float) -> None:
        seen.last = now
        if seen.count >= self._allowed:
            seen.until = now + min(2.0 ** min(seen.count - self._allowed, 30), LONGEST_S)

    def failed(self, who: str, now: float) -> None:
        """The last attempt failed, which took a while: waiting begins now."""
        seen = self._seen.get(who)
        if seen is not None:
            self._punish(seen, now)

    def succeeded(self, who: str) -> None:
        """All is forgiven."""
        self._seen.pop(who, None)

    def undo(self, who: str) -> None:
        """The last attempt was right; those before stay counted."""
        seen = self._seen.get(who)
        if seen is not None:
            seen.count, seen.until = max(0, seen.count - 1), 0.0


IPV6_PREFIX = 64
"""Bits of an IPv6 address that count: whoever has one address has the 2^64 that share them. Source: RFC 6177."""


def _network(peer: str) -> str:
    """What a peer is counted as: its address, of IPv6 the network."""
    if ":" not in peer:
        return peer
    try:
        address = ipaddress.IPv6Address(peer.split("%", 1)[0])
    except ValueError:
        return peer
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.IPv6Network((address, IPV6_PREFIX), strict=False))


def counted_as(name: str, peer: str) -> tuple[str, str]:
    """Name and peer as they are counted and told: of the name a digest, since some type their password there."""
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:32] if name else "", _network(peer)


class Logins:
    """Attempts to log in: by a peer at one name, by a peer at any, and at one name by anybody.

    The last one stops guessing from many addresses, and is loose, so that nobody locks another one out by five typos.
    An empty name is that of everybody who registers: it is not counted, or one could keep all others out.
    """

    def __init__(self) -> None:
        self._kinds = (Throttle(5), Throttle(20), Throttle(50))

    def _counted(self, name: str, peer: str) -> list[tuple[Throttle, str]]:
        at_name, anywhere, by_anybody = self._kinds
        counted = [(at_name, f"{peer} {name}"), (anywhere, peer)]
        return [*counted, (by_anybody, name)] if name else counted

    def begin(self, name: str, peer: str, now: float) -> float:
        """0, and the attempt is counted; or how many seconds to wait, and it is not."""
        name, peer = counted_as(name, peer)
        wait_s = max(kind.wait_s(who, now) for kind, who in self._counted(name, peer))
        if wait_s <= 0:
            self.heard("began", name, peer, now)
        return wait_s

    def failed(self, name: str, peer: str, now: float) -> None:
        """The attempt was wrong."""
        self.heard("failed", *counted_as(name, peer), now)

    def succeeded(self, name: str, peer: str) -> None:
        """The attempt was right. What the peer failed at with other names is not forgotten but for this attempt."""
        self.heard("succeeded", *counted_as(name, peer), 0.0)

    def heard(self, outcome: Outcome, name: str, peer: str, now: float) -> None:
        """Take note of an attempt, here or at another gateway. Name and peer are those of :func:`counted_as`."""
        for kind, who in self._counted(name, peer):
            if outcome == "began":
                kind.began(who, now)
            elif outcome == "failed":
                kind.failed(who, now)
            elif kind is self._kinds[1]:
                kind.undo(who)
            else:
                kind.succeeded(who)
