"""Whether this node's id is its own: a copied home directory makes two nodes with one id, which get the same requests.

Before it takes work a node asks on the bus whether its id is taken, and does not start when somebody answers. Two that
started at the same moment, or met again after a hang or a cut, hear each other's heartbeats: the one that has been
beating for longer stays, the other one ends. A node that starts again has no such trouble: the bus knows at once that
its old process is gone, and a machine that vanished without a word does not answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusError, ConfigError, LlmlbError
from llmlb.bus.messages.nodes import Heartbeat, IdentifyNode, NodeIdentified

log = logging.getLogger("llmlb.node.claim")

ASK_TIMEOUT_S = 1.0
"""Only a process that hangs, or is gone without the bus's knowledge, takes so long."""
SURE_AFTER_BEATS = 2
"""Heartbeats of another instance; a single one may have been on its way when that instance ended."""
ALIKE_S = 1.0
"""Two that began to beat within this time are told apart by their instances' names."""
SHOWN_S = 300.0


def is_second(instance: str, beating_s: float, other: Heartbeat) -> bool:
    """Whether of two live instances of one node the first-named has to give way. Both come to the same answer. Pure."""
    theirs_s = other.uptime_s if other.beating_s is None else other.beating_s
    if abs(beating_s - theirs_s) < ALIKE_S:
        return instance > other.instance
    return beating_s < theirs_s


class Claim:
    """One node's id. :meth:`take` before it takes work."""

    def __init__(
        self, bus: Bus, node_id: str, instance: str, name: str, advice: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``advice``: what to do about a copied home, for people."""
        self._bus, self._node_id, self._instance, self._name = bus, node_id, instance, name
        self._advice = advice
        self._clock = clock
        self._gateway = ""
        self._other = ("", 0)
        """Another instance that was heard, and how often."""
        self._met: tuple[str, float] | None = None
        """A second node that was refused, in words, and when."""
        self.beating_s: Callable[[], float] = lambda: 0.0
        self.on_second: Callable[[ConfigError], None] = lambda _: None
        """Called once this node has to give way."""
        self._given_way = False

    async def take(self, gateway: str) -> None:
        """Raises ConfigError when another node has this id, BusDown."""
        self._gateway = gateway
        ask = IdentifyNode(node_id=self._node_id, instance=self._instance, name=self._name, gateway=gateway)
        try:
            there = await self._bus.call(subjects.identify(self._node_id), ask, NodeIdentified, timeout_s=ASK_TIMEOUT_S)
        except LlmlbError:
            pass  # nobody there, or nobody who can answer: heartbeats will tell
        else:
            raise self._error(there.name, there.gateway)
        await self._bus.subscribe(subjects.identify(self._node_id), self._on_ask)
        await self._bus.subscribe(subjects.heartbeat(self._node_id), self._on_heartbeat)

    def _error(self, name: str, gateway: str) -> ConfigError:
        return ConfigError(
            f"another node with the id {self._node_id[:12]} runs already, on {name} ({gateway}): "
            f"this home directory or that one is a copy. {self._advice}"
        )

    async def _on_ask(self, msg: Msg) -> None:
        asking = codec.decode_as(IdentifyNode, msg.data)
        if asking.instance == self._instance or self._given_way or not msg.reply:
            return
        me = NodeIdentified(node_id=self._node_id, instance=self._instance, name=self._name, gateway=self._gateway)
        try:
            await self._bus.publish(msg.reply, me)
        except BusError as error:
            log.debug("identify_not_answered error=%s", error.message)
        self._meet(asking.name, asking.gateway)

    async def _on_heartbeat(self, msg: Msg) -> None:
        beat = codec.decode_as(Heartbeat, msg.data)
        if beat.instance == self._instance or beat.leaving or self._given_way:
            return
        instance, count = self._other
        count = count + 1 if instance == beat.instance else 1
        self._other = (beat.instance, count)
        if count < SURE_AFTER_BEATS:
            return
        if is_second(self._instance, self.beating_s(), beat):
            self._given_way = True
            self.on_second(self._error(beat.name, beat.gateway))
        else:
            self._meet(beat.name, beat.gateway)

    def _meet(self, name: str, gateway: str) -> None:
        text = f"another node with the same id was refused: {name} ({gateway}), whose home directory is a copy"
        if self._met is None or self._met[0] != text:
            log.error("two_nodes_with_one_id node=%s name=%s gateway=%s", self._node_id[:12], name, gateway)
        self._met = (text, self._clock())

    def problem(self) -> str | None:
        """What somebody has to mend, for 5 minutes after a second node was last met."""
        if self._met is None or self._clock() - self._met[1] > SHOWN_S:
            return None
        return self._met[0]
