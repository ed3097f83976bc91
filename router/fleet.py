"""The live view of the nodes, built from their heartbeats; what each of them has, asked over rpc when it changes.

A router's fleet holds the whole cluster and keeps membership records in the bucket ``llmlb-nodes``; a node's own
gateway has a fleet of that one node. Nothing here needs a restart when the bus was away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from llmlb.bus import codec, subjects
from llmlb.bus.buckets import open_bucket
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, LlmlbError, ModelUnknown, NoCapableNode, RequestError
from llmlb.bus.machine import machine_digest
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.messages.models import ListModels, ModelInfo, ModelList
from llmlb.bus.messages.nodes import Heartbeat, NodeRecord
from llmlb.bus.messages.router import ClusterModel, NodeView
from llmlb.bus.streams import ensure_streams
from llmlb.bus.tasks import Background
from llmlb.router.membership import Membership, Transition
from llmlb.router.placement import Candidate, Placement, place

log = logging.getLogger("llmlb.router.fleet")

TICK_S = 0.5
STALE_AFTER_S = 30.0
RPC_TIMEOUT_S = 3.0
STORES_RETRY_S = 2.0


@dataclass(slots=True)
class Node:
    """What is known of one node now."""

    beat: Heartbeat
    received: float
    models: dict[str, ModelInfo] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Name or alias → name."""
    inventory: tuple[str, int] | None = None
    """(instance, revision) the models were read at."""
    asking: bool = False
    started: int = 0
    """Requests this process started there minus those that ended, since the last heartbeat."""
    picked: int = 0


class Fleet:
    """All nodes, or just ``only`` one. :meth:`start` after the bus was opened."""

    def __init__(self, bus: Bus, *, only: str | None = None) -> None:
        self._bus = bus
        self._only = only
        self._nodes: dict[str, Node] = {}
        self._records: dict[str, NodeRecord] = {}
        self._membership = Membership()
        self._bucket: KeyValue | None = None
        self._background = Background("fleet")
        self._retrying = False
        self._picks = 0

    async def start(self) -> None:
        """Listen. Returns when the bus is up and the subscription stands."""
        await self._bus.wait_up()
        subject = subjects.all_heartbeats() if self._only is None else subjects.heartbeat(self._only)
        await self._bus.subscribe(subject, self._on_heartbeat)
        if self._only is None:
            self._bus.on_up(self._reopen_stores)
            await self._reopen_stores()
        self._background.start(self._tick(), "tick")

    async def _reopen_stores(self) -> None:
        """Open streams and bucket; what fails is tried again until it works, and nodes are served meanwhile."""
        if not await self._open_stores() and not self._retrying:
            self._retrying = True
            self._background.start(self._retry_stores(), "stores")

    async def _retry_stores(self) -> None:
        try:
            while True:
                await asyncio.sleep(STORES_RETRY_S)
                if self._bus.connected and await self._open_stores():
                    return
        finally:
            self._retrying = False

    async def _open_stores(self) -> bool:
        """Streams and bucket are there, and every node of the bucket is known. False: not this time."""
        replicas = self._bus.settings.bus_replicas
        try:
            await ensure_streams(self._bus.client, replicas=replicas)
            self._bucket = await open_bucket(self._bus.client, subjects.BUCKET_NODES, replicas=replicas)
            for key in await self._bucket.keys():
                self._remember(key, (await self._bucket.get(key)).value or b"")
        except nats.js.errors.NoKeysError:
            pass
        except (nats.errors.Error, OSError, TimeoutError) as error:
            mapped = map_nats_error(error)
            log.warning("stores_not_open error=%r detail=%s", mapped.message, mapped.detail)
            return False
        return True

    def _remember(self, key: str, data: bytes) -> None:
        try:
            record = codec.decode_as(NodeRecord, data)
        except BadMessage as error:
            log.warning("node_record_unreadable key=%s detail=%s", key, error.detail)
            return
        self._records[record.node_id] = record
        self._membership.remember(record.node_id, approved=record.approved)

    async def close(self) -> None:
        await self._background.close()

    # Heartbeats

    async def _on_heartbeat(self, msg: Msg) -> None:
        beat = codec.decode_as(Heartbeat, msg.data)
        now = time.monotonic()
        node = self._nodes.get(beat.node_id)
        if node is None:
            node = self._nodes[beat.node_id] = Node(beat, now)
        node.beat, node.received, node.started = beat, now, 0
        approved = self._approved(beat)
        moved = self._membership.heartbeat(
            beat.node_id,
            now,
            approved=approved,
            ready=beat.models_ready,
            total=beat.models_total,
            leaving=beat.leaving,
        )
        if node.inventory != (beat.instance, beat.inventory) and not node.asking and not beat.leaving:
            node.asking = True
            self._background.start(self._ask_models(node), "inventory")
        await self._announce(moved)
        if self._only is None and self._outdated(self._records.get(beat.node_id), beat):
            await self._store(beat, approved)

    @staticmethod
    def _outdated(record: NodeRecord | None, beat: Heartbeat) -> bool:
        return record is None or (record.name, record.gateway) != (beat.name, beat.gateway)

    def _approved(self, beat: Heartbeat) -> bool:
        if self._only is not None or self._membership.approved(beat.node_id):
            return True
        return beat.machine == machine_digest()

    async def _ask_models(self, node: Node) -> None:
        """Read a node's models; a failure is tried again with its next heartbeat."""
        beat = node.beat
        try:
            said = await self._bus.call(
                subjects.node_rpc(beat.node_id, "list"), ListModels(), ModelList, timeout_s=RPC_TIMEOUT_S
            )
            node.models = {model.name: model for model in said.models}
            node.names = {alias: m.name for m in said.models for alias in m.aliases} | {n: n for n in node.models}
            node.inventory = (beat.instance, said.inventory)
        except LlmlbError as error:
            log.warning("inventory_failed node=%s error=%s", beat.node_id[:12], error.message)
        finally:
            node.asking = False

    async def _store(self, beat: Heartbeat, approved: bool, by: str = "same-machine") -> None:
        """Write the durable record. A bus that is away is retried with the next heartbeat."""
        known = self._records.get(beat.node_id)
        if known is not None and known.approved:
            approved, by = True, known.approved_by or by
        record = NodeRecord(
            node_id=beat.node_id,
            name=beat.name,
            gateway=beat.gateway,
            approved=approved,
            approved_by=by if approved else None,
            first_seen_at=time.time() if known is None else known.first_seen_at,
        )
        if self._bucket is None:
            return
        try:
            await self._bucket.put(beat.node_id, codec.encode(record))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            log.warning("node_record_not_stored node=%s error=%r", beat.node_id[:12], error)
            return
        self._records[beat.node_id] = record

    async def _announce(self, moved: list[Transition]) -> None:
        for step in moved:
            node = self._nodes.get(step.node_id)
            name = node.beat.name if node is not None else "?"
            if self._only is not None:
                continue
            log.info(
                "node_state_changed node=%s name=%s before=%s after=%s reason=%r",
                step.node_id[:12],
                name,
                step.before,
                step.after,
                step.reason,
            )
            event = NodeStateChanged(
                node_id=step.node_id, name=name, before=step.before, after=step.after, reason=step.reason
            )
            self._background.start(self._publish_event(event), "event")

    async def _publish_event(self, event: NodeStateChanged) -> None:
        try:
            await self._bus.publish_stored(subjects.event("node"), event)
        except LlmlbError as error:
            log.warning("event_not_stored node=%s error=%s", event.node_id[:12], error.message)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._bus.connected:
                # With the bus away nobody can be heard: that is no node's fault.
                await self._announce(self._membership.tick(time.monotonic()))

    async def approve(self, wanted: str) -> str:
        """Approve a node by id or unique prefix; its id. Raises RequestError."""
        known = {*self._nodes, *self._records}
        found = sorted(node_id for node_id in known if node_id.startswith(wanted.lower())) if wanted else []
        if not found:
            raise RequestError(f"no node has an id that begins with '{wanted}'", param="node")
        if len(found) > 1:
            raise RequestError(f"'{wanted}' stands for {len(found)} nodes; give more of the id", param="node")
        node_id = found[0]
        moved = self._membership.approve(node_id)
        if (node := self._nodes.get(node_id)) is not None:
            await self._store(node.beat, approved=True, by="admin")
        await self._announce(moved)
        return node_id

    # Dispatch's side

    def place(self, model: str, exclude: frozenset[str] = frozenset()) -> tuple[Placement, str]:
        """A node for this model and the model's name there.

        Raises ModelUnknown when no node ever had it, NoCapableNode when none can take it now or none is online.
        """
        now = time.monotonic()
        known = False
        candidates: list[Candidate] = []
        names: dict[str, str] = {}
        for node_id, node in self._nodes.items():
            name = node.names.get(model)
            if name is None:
                continue
            known = True
            if node_id in exclude or not self._usable(node_id, node, now):
                continue
            loaded = next((entry for entry in node.beat.loaded if entry.name == name), None)
            names[node_id] = name
            candidates.append(
                Candidate(
                    node_id=node_id,
                    slots=0 if loaded is None else loaded.slots,
                    running=max(0, (loaded.running if loaded else 0) + node.started),
                    loaded=loaded is not None,
                    picked=node.picked,
                )
            )
        placement = place(candidates)
        if placement is not None:
            return placement, names[placement.node_id]
        if known:
            raise NoCapableNode(f"no node can take model '{model}' at the moment")
        if not any(self._membership.state(node_id) == "online" for node_id in self._nodes):
            raise NoCapableNode("no node is online yet, so nobody knows which models there are")
        raise ModelUnknown(
            f"the model '{model}' does not exist here; GET /v1/models lists those that do", param="model"
        )

    def _usable(self, node_id: str, node: Node, now: float) -> bool:
        return (
            self._membership.state(node_id) == "online"
            and not node.beat.draining
            and not self._membership.suspect(node_id, now)
        )

    def started(self, node_id: str) -> None:
        """A request goes to this node."""
        if (node := self._nodes.get(node_id)) is not None:
            self._picks += 1
            node.picked = self._picks
            node.started += 1

    def ended(self, node_id: str) -> None:
        """It ended there."""
        if (node := self._nodes.get(node_id)) is not None:
            node.started -= 1

    def lost(self, node_id: str) -> None:
        """Nobody answers there: no new work until it is heard again."""
        self._membership.lost(node_id)

    # Views

    def list_models(self) -> tuple[ClusterModel, ...]:
        """The models that at least one node can run now, by name."""
        return tuple(model for model in self.all_models() if model.status == "available")

    def all_models(self) -> tuple[ClusterModel, ...]:
        """Every model known, by name."""
        now = time.monotonic()
        infos: dict[str, list[tuple[ModelInfo, bool, bool]]] = {}
        for node_id, node in self._nodes.items():
            usable = self._usable(node_id, node, now)
            in_memory = {entry.name for entry in node.beat.loaded if entry.ready}
            for name, info in node.models.items():
                infos.setdefault(name, []).append((info, usable, usable and name in in_memory))
        return tuple(
            ClusterModel(
                name=name,
                aliases=tuple(dict.fromkeys(alias for info, _, _ in copies for alias in info.aliases)),
                nodes=sum(usable for _, usable, _ in copies),
                loaded=sum(loaded for _, _, loaded in copies),
                status="available" if any(usable for _, usable, _ in copies) else "unavailable",
                created_at=min(info.created_at for info, _, _ in copies),
            )
            for name, copies in sorted(infos.items())
        )

    def nodes(self) -> tuple[NodeView, ...]:
        """Every node heard of in the life of this process, by name and id."""
        now = time.monotonic()
        views = [self._view(node_id, node, now) for node_id, node in self._nodes.items()]
        views += [self._remembered(record) for node_id, record in self._records.items() if node_id not in self._nodes]
        return tuple(sorted(views, key=lambda view: (view.name, view.gateway, view.node_id)))

    def _view(self, node_id: str, node: Node, now: float) -> NodeView:
        beat, age = node.beat, now - node.received
        return NodeView(
            node_id=node_id,
            name=beat.name,
            gateway=beat.gateway,
            state=self._membership.state(node_id) or "pending",
            suspect=self._membership.suspect(node_id, now),
            draining=beat.draining,
            version=beat.version,
            models=tuple(sorted(node.models)),
            loaded_models=tuple(entry.name for entry in beat.loaded if entry.ready),
            models_ready=beat.models_ready,
            models_total=beat.models_total,
            running=beat.running,
            slots=sum(entry.slots for entry in beat.loaded),
            gpus=beat.gpus,
            cpu_percent=beat.cpu_percent,
            memory_total_bytes=beat.memory_total_bytes,
            memory_available_bytes=beat.memory_available_bytes,
            uptime_s=beat.uptime_s,
            last_heartbeat_age_s=age,
            metrics_stale=age > STALE_AFTER_S,
        )

    @staticmethod
    def _remembered(record: NodeRecord) -> NodeView:
        return NodeView(
            node_id=record.node_id,
            name=record.name,
            gateway=record.gateway,
            state="offline",
            suspect=False,
            draining=False,
            version="",
            models=(),
            loaded_models=(),
            models_ready=0,
            models_total=0,
            running=0,
            slots=0,
            gpus=(),
            cpu_percent=None,
            memory_total_bytes=None,
            memory_available_bytes=None,
            uptime_s=0.0,
            last_heartbeat_age_s=time.time() - record.sent_at,
            metrics_stale=True,
        )
