"""The live view of the nodes, built from their heartbeats; what each of them has, asked over rpc when it changes.

A router's fleet holds the whole cluster and keeps membership records in the bucket ``llmlb-nodes``; a node's own
gateway has a fleet of that one node. Nothing here needs a restart when the bus was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import nats.errors
from nats.aio.msg import Msg

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, BusDown, LlmlbError, ModelDownloading, ModelUnknown, NoCapableNode
from llmlb.bus.messages.models import ListModels, ModelInfo, ModelList
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.messages.router import ClusterModel, NodeView
from llmlb.bus.tasks import Background
from llmlb.router.breaker import Breakers
from llmlb.router.loads import Loads
from llmlb.router.members import Members
from llmlb.router.node_views import live_view, remembered_view

log = logging.getLogger("llmlb.router.fleet")

TICK_S = 1.5
"""Between two looks at most; a node whose heartbeats are missing is looked at when its time is over."""
TICK_LEAST_S = 0.1
TICK_HEARD_S = 0.9
"""After so long the next heartbeat brings one along: a timer of its own would wake the process once more."""
RPC_TIMEOUT_S = 3.0
FLUSH_S = 2
ARRIVAL_S = 3.0
"""How long a fleet that has just begun may not have heard of a node that is there: three heartbeats."""
ARRIVAL_POLL_S = 0.02


@dataclass(slots=True)
class Node:
    """What is known of one node now."""

    beat: Heartbeat
    received: float
    models: dict[str, ModelInfo] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Name or alias → name; those that registrations give, too."""
    own_names: dict[str, str] = field(default_factory=dict)
    """As the node tells them."""
    repos: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Repository, in lower case → names of its models there."""
    inventory: tuple[str, int] | None = None
    """(instance, revision) the models were read at."""
    asking: bool = False


class Fleet:
    """All nodes, or just ``only`` one. :meth:`start` after the bus was opened."""

    def __init__(self, bus: Bus, *, only: str | None = None) -> None:
        self._bus = bus
        self._only = only
        self._nodes: dict[str, Node] = {}
        self._background = Background("fleet")
        self._began: float | None = None
        self._due, self._ticked = asyncio.Event(), time.monotonic()
        self.members = Members(bus, only=only, changed=self._refresh, removed=self._remove)
        """Who is in the cluster, and in which state."""
        self._models: tuple[ClusterModel, ...] = ()
        self._models_of: tuple[object, ...] = ()
        """What :meth:`all_models` was put together of."""
        self.loads = Loads(Breakers())
        """What placement sees."""
        self.more_names: Callable[[Node], dict[str, str]] = lambda _: {}
        """Further names for the models of a node."""
        self.why_not: Callable[[str], LlmlbError | None] = lambda _: None
        """Why a model that the cluster shall have can't be asked."""
        self.on_models: list[Callable[[str], None]] = []
        """Called with a node's id when it has said what it has."""

    async def start(self) -> None:
        """Listen. Returns when the bus is up and the subscription stands."""
        await self._bus.wait_up()
        # Records first: a node that is known needs not be new for a moment.
        await self.members.start()
        subject = subjects.all_heartbeats() if self._only is None else subjects.heartbeat(self._only)
        await self._bus.subscribe(subject, self._on_heartbeat)
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._bus.client.flush(FLUSH_S)  # the bus knows of it; after an outage it is told again anyway
        self._began = time.monotonic()
        self._background.forever(self._tick, "tick")

    async def close(self) -> None:
        await self._background.close()
        await self.members.close()

    # Heartbeats

    async def _on_heartbeat(self, msg: Msg) -> None:
        beat = codec.decode_as(Heartbeat, msg.data)
        if msg.subject != subjects.heartbeat(beat.node_id):
            raise BadMessage("a heartbeat of one node on the subject of another")
        now = time.monotonic()
        if now - self._ticked >= TICK_HEARD_S:
            self._due.set()
        if not self.members.heard(beat, now):
            return
        node = self._nodes.get(beat.node_id)
        if node is None:
            node = self._nodes[beat.node_id] = Node(beat, now)
        node.beat, node.received = beat, now
        if node.inventory != (beat.instance, beat.inventory) and not node.asking and not beat.leaving:
            node.asking = True
            self._background.start(self._ask_models(node), "inventory")
        self._heard(beat.node_id, node, now)

    def _refresh(self, node_id: str) -> None:
        """What an admin decided about a node is another thing than before."""
        if (node := self._nodes.get(node_id)) is not None:
            self.loads.usable(node_id, usable=self._usable(node_id, node, time.monotonic()))

    def _remove(self, node_id: str) -> None:
        """It was taken out of the cluster."""
        self._nodes.pop(node_id, None)
        self.loads.forget(node_id)

    async def _ask_models(self, node: Node) -> None:
        """Read a node's models; a failure is tried again with its next heartbeat."""
        beat = node.beat
        try:
            said = await self._bus.call(
                subjects.node_rpc(beat.node_id, "list"), ListModels(), ModelList, timeout_s=RPC_TIMEOUT_S
            )
            node.models = {model.name: model for model in said.models}
            node.own_names = {other: m.name for m in said.models for other in (*m.also, *m.aliases)}
            node.own_names |= {name: name for name in node.models}
            repos: dict[str, tuple[str, ...]] = {}
            for name in node.models:
                repo = name.partition(":")[0].lower()
                repos[repo] = (*repos.get(repo, ()), name)
            node.repos = repos
            self._rename(node)
            node.inventory = (beat.instance, said.inventory)
            self._heard(beat.node_id, node, time.monotonic())
            for callback in self.on_models:
                callback(beat.node_id)
        except LlmlbError as error:
            log.warning("inventory_failed node=%s error=%s", beat.node_id[:12], error.message)
        finally:
            node.asking = False

    def _rename(self, node: Node) -> None:
        """What a node itself calls a model wins."""
        node.names = {**self.more_names(node), **node.own_names}

    def renamed(self) -> None:
        """Models have other names than before."""
        now = time.monotonic()
        for node_id, node in self._nodes.items():
            if node.inventory is not None:
                self._rename(node)
                self._heard(node_id, node, now)

    def known(self) -> Mapping[str, Node]:
        """Each node that was heard, with what it has."""
        return self._nodes

    async def _tick(self) -> None:
        while True:
            pause = self.members.until_next(time.monotonic())
            self._due.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(TICK_LEAST_S, min(pause, TICK_S))):
                    await self._due.wait()
            self._ticked = now = time.monotonic()
            self.members.tick(now)
            if self._bus.connected:
                # With the bus away nobody can be heard: that is no node's fault.
                for node_id, node in self._nodes.items():
                    self.loads.usable(node_id, usable=self._usable(node_id, node, now))

    async def approve(self, wanted: str) -> str:
        """Approve a node by id or unique prefix; its id. Raises as :meth:`Members.change`."""
        return await self.members.change(wanted, approved=True, approved_by="admin", rejected=False)

    # Dispatch's side

    async def check(self, model: str) -> None:
        """Raises what a request for this model gets when no node has it: see :meth:`explain`.

        While it is still being found out who has what, which takes up to ARRIVAL_S, the request waits for it.
        """
        if self.loads.has(model):
            return
        until = time.monotonic() + ARRIVAL_S
        while self._arriving() and self._bus.connected and time.monotonic() < until:
            await asyncio.sleep(ARRIVAL_POLL_S)
            if self.loads.has(model):
                return
        if not self._bus.connected:
            raise BusDown("the bus is not reachable at the moment")
        self.explain(model)

    def explain(self, model: str) -> NoReturn:
        """Why no node can take a request for this model.

        Raises NoCapableNode when one has it, or when it is not known yet which models there are; ModelDownloading when
        it is on its way to a node; else ModelUnknown.
        """
        if self.loads.has(model):
            raise NoCapableNode(f"no node can take model '{model}' at the moment")
        if (why := self.why_not(model)) is not None:
            raise why
        wanted = model.partition(":")[0]
        for node in self._nodes.values():
            if any(name in (model, wanted) or name.partition(":")[0] == model for name in node.beat.pulling):
                raise ModelDownloading(f"the model '{model}' is being downloaded; GET /v0/tasks shows how far it is")
        if not self._anybody():
            raise NoCapableNode("no node is online yet, so nobody knows which models there are")
        if not self._models_known():
            raise NoCapableNode(f"not every node has said yet what it has, and none of the others has model '{model}'")
        raise ModelUnknown(
            f"the model '{model}' does not exist here; GET /v1/models lists those that do", param="model"
        )

    def _arriving(self) -> bool:
        """A node may be there that has not yet said what it has."""
        if not self._models_known():
            return True
        if self._began is None or time.monotonic() - self._began > ARRIVAL_S:
            return False
        return not self.settled() or any(
            record.approved and node_id not in self._nodes for node_id, record in self.members.records().items()
        )

    def settled(self) -> bool:
        """A node is online, and each one that is has said what it has."""
        return self._anybody() and self._models_known()

    def _anybody(self) -> bool:
        return any(self.members.state(node_id) == "online" for node_id in self._nodes)

    def _models_known(self) -> bool:
        """Each node that is online has said what it has."""
        return all(
            node.inventory is not None
            for node_id, node in self._nodes.items()
            if self.members.state(node_id) == "online"
        )

    def _heard(self, node_id: str, node: Node, now: float) -> None:
        """Bring what placement sees up to date."""
        if node.beat.leaving:
            self.loads.forget(node_id)
        elif node.inventory is not None:
            usable = self._usable(node_id, node, now)
            self.loads.heard(node.beat, node.models, node.names, usable=usable)

    def _usable(self, node_id: str, node: Node, now: float) -> bool:
        return not node.beat.draining and self.members.usable(node_id, now)

    def lost(self, node_id: str) -> None:
        """Nobody answers there: no new work until it is heard again."""
        self.members.lost(node_id)
        self.loads.usable(node_id, usable=False)

    def unheard(self, node_id: str) -> bool:
        """True: its heartbeats are missing, and the bus is not."""
        return self._bus.connected and self.members.suspect(node_id, time.monotonic())

    # Views

    def list_models(self) -> tuple[ClusterModel, ...]:
        """The models that at least one node can run now, by name."""
        return tuple(model for model in self.all_models() if model.status == "available")

    def all_models(self) -> tuple[ClusterModel, ...]:
        """Every model known, by name. Put together anew only when something of it may be different."""
        now = time.monotonic()
        made_of = tuple(
            (node_id, self._usable(node_id, node, now), node.models, node.names, node.beat.loaded)
            for node_id, node in self._nodes.items()
        )
        if made_of != self._models_of:
            self._models = self._put_together(now)
        self._models_of = made_of
        return self._models

    def _put_together(self, now: float) -> tuple[ClusterModel, ...]:
        infos: dict[str, list[tuple[ModelInfo, bool, bool]]] = {}
        further: dict[str, dict[str, None]] = {}
        for node_id, node in self._nodes.items():
            usable = self._usable(node_id, node, now)
            in_memory = {entry.name for entry in node.beat.loaded if entry.ready}
            for name, info in node.models.items():
                infos.setdefault(name, []).append((info, usable, usable and name in in_memory))
            for other, name in node.names.items():
                if other not in node.own_names:
                    further.setdefault(name, {})[other] = None
        return tuple(
            ClusterModel(
                name=name,
                aliases=tuple(
                    dict.fromkeys([*(alias for info, _, _ in copies for alias in info.aliases), *further.get(name, ())])
                ),
                also=tuple(dict.fromkeys(other for info, _, _ in copies for other in info.also)),
                nodes=sum(usable for _, usable, _ in copies),
                loaded=sum(loaded for _, _, loaded in copies),
                status="available" if any(usable for _, usable, _ in copies) else "unavailable",
                created_at=min(info.created_at for info, _, _ in copies),
            )
            for name, copies in sorted(infos.items())
        )

    def nodes(self) -> tuple[NodeView, ...]:
        """Every node known, by name and id."""
        now = time.monotonic()
        views = [
            live_view(self.members, node.beat, tuple(node.models), now - node.received, now)
            for node in self._nodes.values()
        ]
        records = self.members.records()
        views += [remembered_view(record) for node_id, record in records.items() if node_id not in self._nodes]
        return tuple(sorted(views, key=lambda view: (view.name, view.gateway, view.node_id)))
