"""The members of the cluster: heartbeats and what admins decided, kept in the bucket ``llmlb-nodes``, as states.

Every router hears every heartbeat and mirrors the same bucket, so all of them come to the same view; what one writes
the others see at once. Hearing a heartbeat never waits for the bus: what has to be written is written behind it, once a
node however many heartbeats came meanwhile. A node's own gateway has the one member that it asks, approved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, InvalidRequest, LlmlbError, NodeUnknown
from llmlb.bus.machine import machine_digest
from llmlb.bus.messages.events import NodeState
from llmlb.bus.messages.nodes import Heartbeat, NodeRecord
from llmlb.bus.tasks import Background
from llmlb.router.announcer import Announcer
from llmlb.router.instances import Instances
from llmlb.router.membership import SUSPECT_AFTER_S, Membership, Transition
from llmlb.router.mirror import Mirror
from llmlb.router.tokens import JoinTokens

log = logging.getLogger("llmlb.router.members")

WRITE_AGAIN_S = 2.0
WRITERS = 16
"""Records written at the same time."""


class Members:
    """All nodes, or just ``only`` one. ``changed`` is called with each node whose record changed, ``removed`` with each
    that was taken out."""

    def __init__(
        self,
        bus: Bus,
        *,
        only: str | None = None,
        changed: Callable[[str], None] = lambda _: None,
        removed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bus = bus
        self._only = only
        self._changed = changed
        self._removed = removed
        self._membership = Membership()
        self._instances = Instances()
        self._records: dict[str, NodeRecord] = {}
        self._beats: dict[str, Heartbeat] = {}
        self._said: dict[str, str] = {}
        """The instance that was last logged as the second one of a node."""
        self._judged: dict[str, tuple[str, int]] = {}
        """Proof and version of the tokens that a node was judged by."""
        self._token_trouble: dict[str, str] = {}
        self._dirty: dict[str, None] = {}
        """Nodes whose record has to be written: as many as there are nodes."""
        self._wake = asyncio.Event()
        self._closing = False
        self._heard_until = time.monotonic()
        self._announcer = Announcer(bus)
        self._mirror = Mirror(bus, subjects.BUCKET_NODES, self._on_record)
        self.tokens = JoinTokens(bus)
        self._background = Background("members")

    @property
    def announcer(self) -> Announcer:
        """Stores events of the cluster."""
        return self._announcer

    async def start(self) -> None:
        """Read the records and tokens; takes some seconds at most. What fails is tried again behind it."""
        if self._only is not None:
            return
        await self._announcer.start()
        await self.tokens.start()
        await self._mirror.start()
        self._background.forever(self._write_dirty, "write")

    async def close(self) -> None:
        # A cancellation can get lost in nats-py (see Background.close): the loop looks for itself.
        self._closing = True
        self._dirty.clear()
        self._wake.set()
        await self._background.close()
        await self._mirror.close()
        await self.tokens.close()
        await self._announcer.close()

    # What is heard

    def heard(self, beat: Heartbeat, now: float) -> bool:
        """A heartbeat came. False: of a second node with the same id, or of a stranger that leaves; to be ignored."""
        node_id = beat.node_id
        if beat.leaving:
            second = self._instances.is_second(node_id, beat.instance)
            self._instances.left(node_id, beat.instance)
            if second:
                return False
        elif not self._instances.heard(node_id, beat.instance, now):
            self._say_second(beat)
            return False
        before = self._beats.get(node_id)
        moved = self._membership.restarted(node_id) if before is not None and before.instance != beat.instance else []
        self._beats[node_id] = beat
        record = self._records.get(node_id)
        served = record is not None and record.online_instance == beat.instance
        moved += self._membership.heartbeat(
            node_id,
            now,
            approved=self._approved(beat, record),
            ready=beat.models_total if served else beat.models_ready,
            total=beat.models_total,
            leaving=beat.leaving,
        )
        if self._only is None:
            self._announcer.announce(moved, self._about)
            if not beat.leaving and self._outdated(record, beat):
                self._mark(node_id)
        return self._membership.state(node_id) is not None

    def _approved(self, beat: Heartbeat, record: NodeRecord | None) -> bool:
        if self._only is not None:
            return True
        if record is not None and (record.approved or record.rejected):
            return record.approved
        return beat.machine == machine_digest()

    def _say_second(self, beat: Heartbeat) -> None:
        if self._said.get(beat.node_id) != beat.instance:
            self._said[beat.node_id] = beat.instance
            first = self._beats.get(beat.node_id)
            log.error(
                "two_nodes_with_one_id node=%s first=%s second=%s the second one is ignored; its home is a copy",
                beat.node_id[:12],
                "?" if first is None else f"{first.name}/{first.gateway}",
                f"{beat.name}/{beat.gateway}",
            )

    def lost(self, node_id: str) -> None:
        """Nobody answers there: suspect until it is heard again."""
        self._membership.lost(node_id)

    def tick(self, now: float) -> None:
        """Time has passed. Called at least each 2 s; after a longer pause, or one of the bus, nothing was heard."""
        if self._bus.connected:
            if now - self._heard_until >= SUSPECT_AFTER_S:
                self._membership.deaf(now)
            self._heard_until = now
            moved = self._membership.tick(now)
            if self._only is None:
                self._announcer.announce(moved, self._about)

    def until_next(self, now: float) -> float:
        """As :meth:`Membership.until_next`."""
        return self._membership.until_next(now)

    # Records

    def _on_record(self, node_id: str, value: bytes | None) -> None:
        """The bucket has another record than before; None: an admin removed the node."""
        if value is None:
            self._say_removed(node_id)
            self._records.pop(node_id, None)
            self._beats.pop(node_id, None)
            self._judged.pop(node_id, None)
            self._membership.forget(node_id)
            self._instances.forget(node_id)
            log.info("node_removed node=%s", node_id[:12])
            self._removed(node_id)
            return
        try:
            record = codec.decode_as(NodeRecord, value)
        except BadMessage as error:
            log.warning("node_record_unreadable key=%s detail=%s", node_id, error.detail)
            return
        self._records[node_id] = record
        beat = self._beats.get(node_id)
        approved = record.approved if beat is None else self._approved(beat, record)
        reason = "an admin refused it" if record.rejected else f"approved: {record.approved_by}"
        self._announcer.announce(self._membership.decide(node_id, approved=approved, reason=reason), self._about)
        self._changed(node_id)

    def _say_removed(self, node_id: str) -> None:
        state = self._membership.state(node_id)
        if state not in (None, "offline"):
            gone = Transition(node_id, state, "offline", "an admin removed it")
            self._announcer.announce([gone], self._about)

    def _outdated(self, record: NodeRecord | None, beat: Heartbeat) -> bool:
        if record is None or (record.name, record.gateway) != (beat.name, beat.gateway):
            return True
        if self._membership.state(beat.node_id) == "online" and record.online_instance != beat.instance:
            return True
        if record.approved or record.rejected:
            return False
        return beat.machine == machine_digest() or (
            beat.join_token is not None and self._judged.get(beat.node_id) != (beat.join_token, self.tokens.version)
        )

    def _mark(self, node_id: str) -> None:
        self._dirty[node_id] = None
        self._wake.set()

    async def _write_dirty(self) -> None:
        """Write what is marked, some at a time; what fails is tried again until it works."""
        said = ""
        if self._dirty:
            self._wake.set()  # this may be begun again, in the middle of them
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            await self._bus.wait_up()
            error: LlmlbError | None = None
            while self._dirty and error is None:
                batch = list(self._dirty)[:WRITERS]
                for node_id in batch:
                    del self._dirty[node_id]
                errors = await asyncio.gather(*(self._write(node_id) for node_id in batch))
                error = next((each for each in errors if each is not None), None)
            if error is not None:
                if error.message != said:
                    log.warning("node_records_not_written waiting=%d error=%r", len(self._dirty), error.message)
                await asyncio.sleep(WRITE_AGAIN_S)
                self._wake.set()
            said = "" if error is None else error.message

    async def _write(self, node_id: str) -> LlmlbError | None:
        """Bring one record up to date with the node's last heartbeat. The error, when that has to be tried again."""
        beat = self._beats.get(node_id)
        if beat is None:
            return None
        try:
            let_in = await self._let_in(beat, self._records.get(node_id))
            await self._mirror.edit(node_id, lambda old: self._up_to_date(old, beat, let_in))
        except LlmlbError as error:
            self._dirty[node_id] = None
            return error
        return None

    async def _let_in(self, beat: Heartbeat, record: NodeRecord | None) -> str | None:
        """By what a node comes in that no admin decided about: same-machine, token, or None. Raises LlmlbError."""
        if record is not None and (record.approved or record.rejected):
            return None
        if beat.machine == machine_digest():
            return "same-machine"
        if beat.join_token is None:
            return None
        version = self.tokens.version
        key, trouble = self.tokens.judge(beat.node_id, beat.join_token)
        if key is not None and trouble is None and await self.tokens.spend(key, beat.node_id):
            self._token_trouble.pop(beat.node_id, None)
            log.info("node_let_in_by_token node=%s token=%s", beat.node_id[:12], key)
            return "token"
        if trouble is None:
            return None  # spent by others meanwhile: judged anew with the next heartbeat
        if self._token_trouble.get(beat.node_id) != trouble:
            self._token_trouble[beat.node_id] = trouble
            log.warning("join_token_refused node=%s name=%s why=%r", beat.node_id[:12], beat.name, trouble)
        self._judged[beat.node_id] = (beat.join_token, version)
        return None

    def _up_to_date(self, old: bytes | None, beat: Heartbeat, let_in: str | None) -> bytes | None:
        record = self._record_of(old, beat)
        update: dict[str, object] = {"name": beat.name, "gateway": beat.gateway}
        if self._membership.state(beat.node_id) == "online":
            update["online_instance"] = beat.instance
        if let_in is not None and not record.approved and not record.rejected:
            update |= {"approved": True, "approved_by": let_in}
        return self._replaced(old, record, update)

    def _record_of(self, old: bytes | None, beat: Heartbeat) -> NodeRecord:
        """The record in the bucket, or the first one of a node. Raises BadMessage: one that can't be read stays."""
        if old is not None:
            return codec.decode_as(NodeRecord, old)
        return NodeRecord(
            node_id=beat.node_id, name=beat.name, gateway=beat.gateway, approved=False, first_seen_at=time.time()
        )

    @staticmethod
    def _replaced(old: bytes | None, record: NodeRecord, update: dict[str, object]) -> bytes:
        """The same bytes when nothing changes, so that nothing is written."""
        if old is not None and all(getattr(record, name) == value for name, value in update.items()):
            return old
        return codec.encode(record.model_copy(update={**update, "sent_at": time.time()}))

    # What admins decide

    def find(self, wanted: str) -> str:
        """The id of the node whose id begins so. Raises NodeUnknown, InvalidRequest when there are several."""
        known = {*self._records, *self._beats}
        found = sorted(node_id for node_id in known if node_id.startswith(wanted.lower())) if wanted else []
        if not found:
            raise NodeUnknown(f"no node has an id that begins with '{wanted}'", param="node")
        if len(found) > 1:
            some = ", ".join(node_id[:12] for node_id in found[:3])
            text = f"'{wanted}' stands for {len(found)} nodes ({some} …); give more of the id"
            raise InvalidRequest(text, param="node")
        return found[0]

    async def change(self, wanted: str, **update: object) -> str:
        """Change a node's record in the bucket; its id. Raises NodeUnknown, InvalidRequest, BusDown, Conflict."""
        node_id = self.find(wanted)
        beat = self._beats.get(node_id)

        def changed(old: bytes | None) -> bytes | None:
            if old is None and beat is None:
                raise NodeUnknown(f"the node {node_id[:12]} was removed meanwhile", param="node")
            if old is not None:
                return self._replaced(old, codec.decode_as(NodeRecord, old), update)
            assert beat is not None
            return self._replaced(None, self._record_of(None, beat), update)

        await self._mirror.edit(node_id, changed)
        log.info("node_record_changed node=%s %s", node_id[:12], " ".join(f"{k}={v}" for k, v in update.items()))
        return node_id

    async def remove(self, wanted: str) -> str:
        """Forget a node; its id. One that runs is new with its next heartbeat. Raises as :meth:`change`."""
        node_id = self.find(wanted)
        await self._mirror.edit(node_id, lambda _: None)
        if node_id in self._beats:
            self._on_record(node_id, None)  # it had no record yet
        return node_id

    # What is known

    def record(self, node_id: str) -> NodeRecord | None:
        return self._records.get(node_id)

    def records(self) -> dict[str, NodeRecord]:
        return self._records

    def _about(self, node_id: str) -> tuple[str, str]:
        """Its host name, and its instance when it was heard."""
        beat, record = self._beats.get(node_id), self._records.get(node_id)
        return (beat.name, beat.instance) if beat is not None else ("?" if record is None else record.name, "")

    def state(self, node_id: str) -> NodeState:
        return self._membership.state(node_id) or "pending"

    def suspect(self, node_id: str, now: float) -> bool:
        return self._membership.suspect(node_id, now)

    def drained(self, node_id: str) -> bool:
        record = self._records.get(node_id)
        return record is not None and record.drained

    def usable(self, node_id: str, now: float) -> bool:
        """Whether it may get new work, as far as membership goes."""
        return self.state(node_id) == "online" and not self.suspect(node_id, now) and not self.drained(node_id)

    def problem(self, node_id: str, now: float) -> str | None:
        """What somebody has to do about it."""
        beat, record = self._beats.get(node_id), self._records.get(node_id)
        if self._instances.doubled(node_id, now):
            return "another node with the same id runs and is ignored: its home directory is a copy of this one's"
        if beat is not None and beat.problem is not None:
            return beat.problem
        if record is not None and record.rejected:
            return "an admin refused it"
        if self._membership.state(node_id) == "pending":
            return self._token_trouble.get(node_id, "it waits for the approval of an admin")
        return "an admin drained it" if record is not None and record.drained else None
