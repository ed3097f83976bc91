"""The node agent: takes inference requests from the bus, has a worker answer them, and forwards the replies.

Everything it does for others comes in over the bus; it needs no inbound port. A request that is here is always
answered by exactly one last reply (end or failed), whatever happens to its worker, unless the bus itself is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llmlb.bus import codec, subjects
from llmlb.bus.bulk import Bulk, read_request
from llmlb.bus.connection import Bus
from llmlb.bus.errors import (
    BadMessage,
    BusError,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    LlmlbError,
    MessageTooLarge,
    ModelUnknown,
    NodeBusy,
    NodeLost,
)
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.infer import (
    Accepted,
    BulkInferRequest,
    CancelRequest,
    Failed,
    InferReply,
    InferRequest,
    Progress,
)
from llmlb.bus.messages.models import (
    ListModels,
    ListRunning,
    ModelDetails,
    ModelList,
    ModelStopped,
    RunningList,
    ShowModel,
    StopModel,
)
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background
from llmlb.node.engine.pool import EnginePool
from llmlb.node.engine.pool_interface import Loaded, MakePool, Pool
from llmlb.node.flight import Flight, answer_too_large
from llmlb.node.hardware import Hardware
from llmlb.node.heartbeat import Heart
from llmlb.node.models import NodeModels
from llmlb.node.readers import Readers
from llmlb.node.running import running_list
from llmlb.node.speed import Speeds
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.node.store.watch import SourceWatch

log = logging.getLogger("llmlb.node.agent")

LOADING_PROGRESS_S = 1.0
FIRST_LOOK_S = 2.0
"""A node waits so long before its first heartbeat to learn what is registered for it."""


class NodeAgent:
    """Wires bus, catalog, engines and heartbeat together. :meth:`register` before the bus opens, then :meth:`run`."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        catalog: Catalog,
        node_id: str,
        make_pool: MakePool = EnginePool,
        store: Store | None = None,
    ) -> None:
        """``store`` None: a node without models of its own, nothing can be pulled or removed."""
        self.node_id = node_id
        self._settings = settings
        self._bus = bus
        self._catalog = catalog
        self._hardware = Hardware()
        self._background = Background("agent")
        self._bulk = Bulk(bus)
        self._flights: dict[int, Flight] = {}
        self._by_request: dict[str, int] = {}
        self._handles = itertools.count(1)
        self._speeds = Speeds()
        self._readers = Readers(bus, self._flights.values, self._give_up)
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.pool: Pool = make_pool(
            settings, on_reply=self._on_reply, on_crash=self._on_crash, on_change=lambda: self.heart.beat_soon()
        )
        self.pool.gpus = lambda: self.heart.reading.gpus
        self._watch = SourceWatch(catalog, lambda: self.heart.beat_soon())
        self.models: NodeModels | None = None
        if store is not None:
            self.models = NodeModels(settings, bus, node_id, catalog, store, self.pool, lambda: self.heart.beat_soon())
        self.heart = Heart(
            bus,
            node_id,
            self._hardware,
            catalog,
            self.pool,
            load=lambda: len(self._flights),
            assigned=lambda: (0, 0) if self.models is None else self.models.sync.counts(),
            speeds=self._speeds,
            pulling=lambda: () if self.models is None else self.models.pulling(),
            approved=lambda: self.models is not None and self.models.sync.approved,
        )
        self.heart.claim.on_second = self._give_way
        self.on_second: Callable[[ConfigError], None] = lambda _: None
        """Called when this node takes no more work because another one has its id and was there first."""
        self._subscribed: list[Subscription] = []

    def register(self) -> None:
        """Offer the node's rpc operations; before the bus opens."""
        bus, node = self._bus, self.node_id
        bus.handle(subjects.node_rpc(node, "list"), ListModels, ModelList, self.list_models)
        bus.handle(subjects.node_rpc(node, "show"), ShowModel, ModelDetails, self.show_model)
        bus.handle(subjects.node_rpc(node, "ps"), ListRunning, RunningList, self.list_running)
        bus.handle(subjects.node_rpc(node, "stop"), StopModel, ModelStopped, self.stop_model)
        if self.models is not None:
            self.models.register()

    async def run(self, gateway: str) -> None:
        """Take work as soon as the bus is up. ``gateway`` is host:port of this node's own gateway.

        Raises ConfigError when another node has this one's id.
        """
        await self._bus.wait_up()
        try:
            await self.heart.claim.take(gateway)
        except ConfigError:
            self.heart.silence()
            raise
        self.pool.open()
        self._subscribed = [
            await self._bus.subscribe(subjects.infer(self.node_id), self._on_infer),
            await self._bus.subscribe(subjects.cancel(self.node_id), self._on_cancel),
        ]
        self._bus.on_up(self._back_again)
        await self._readers.start()
        self._background.forever(self._readers.run, "readers")
        self._background.forever(self._watch.run, "watch")
        if self.models is not None:
            self.models.start()
            # Otherwise the first heartbeats say that nothing is registered for it, and it counts as ready.
            await self.models.sync.looked(FIRST_LOOK_S)
        self.heart.start(gateway)
        log.info("node_ready node=%s models=%d", self.node_id, len(self._catalog.models()))

    async def _back_again(self) -> None:
        self.heart.beat_soon()

    def _give_way(self, error: ConfigError) -> None:
        """Another node has this id: no work, not a word more."""
        log.error("node_gives_way error=%r", error.message)
        self._draining = True
        self.heart.silence()
        self._background.start(self._unsubscribe(), "unsubscribe")
        self.on_second(error)

    async def _unsubscribe(self) -> None:
        for subscription in self._subscribed:
            with contextlib.suppress(nats.errors.Error, OSError):  # the connection may be gone, and they with it
                await subscription.unsubscribe()
        self._subscribed = []

    # Rpc

    async def list_models(self, _: ListModels) -> ModelList:
        await self._watch.look()
        return ModelList(models=self._catalog.models(), inventory=self._catalog.inventory)

    async def show_model(self, request: ShowModel) -> ModelDetails:
        await self._watch.look()
        details = self._catalog.details(request.model)
        return details.model_copy(update={"problem": self.pool.failed().get(details.model.name)})

    async def list_running(self, _: ListRunning) -> RunningList:
        return running_list(self.pool, self.heart.reading.gpus)

    async def stop_model(self, request: StopModel) -> ModelStopped:
        name = self._catalog.resolve(request.model).info.name
        await self.pool.stop(name)
        return ModelStopped(model=name)

    # Inference

    async def _on_infer(self, msg: Msg) -> None:
        if not msg.reply:
            log.warning("infer_without_reply")
            return
        try:
            request = read_request(msg.data)
        except BadMessage as error:
            await self._publish(msg.reply, Failed(request_id="", seq=0, error=WireError.of(error)))
            return
        known = self._flights.get(self._by_request.get(request.request_id, 0))
        if known is not None:
            if request.attempt <= known.attempt:
                return  # the same message once more
            self._give_up(known)  # who asked lost its answer on the way, and asks for the rest
        try:
            if self._draining:
                raise NodeBusy("the node is shutting down")
            model = self._catalog.resolve(request.model)
            if self.models is not None and self.models.is_going(model.info.name):
                raise ModelUnknown(f"model '{model.info.name}' is being removed", param="model")
        except LlmlbError as error:
            await self._publish(msg.reply, Failed(request_id=request.request_id, seq=0, error=WireError.of(error)))
            return
        bulk = request if isinstance(request, BulkInferRequest) else None
        flight = Flight(next(self._handles), request.request_id, request.attempt, msg.reply, model, msg.data, bulk)
        self._flights[flight.handle] = flight
        self._by_request[flight.request_id] = flight.handle
        self._idle.clear()
        self._readers.stir()
        if isinstance(request, InferRequest) and request.deadline_ms is not None:
            flight.set_clock(request.deadline_ms, lambda: self._background.start(self._end_late(flight), "late"))
        await self._send(flight, Accepted(request_id=flight.request_id, seq=flight.seq, node_id=self.node_id))
        if flight.cancelled or flight.handle not in self._flights:
            self._forget(flight.handle)  # neither an engine nor a task has it, so nobody else does
            return
        loaded = self.pool.ready_now(model.info.name) if bulk is None else None
        if loaded is None:
            flight.waiting = self._background.start(self._begin(flight), f"begin.{flight.request_id}")
        else:
            await self._hand_over(flight, loaded)

    async def _hand_over(self, flight: Flight, loaded: Loaded) -> None:
        """Give the request to its worker, which was held for it."""
        if flight.cancelled or flight.handle not in self._flights:
            self._forget(flight.handle)
            self.pool.release(loaded)
            return
        flight.loaded = loaded
        self._catalog.touch(loaded.name)
        try:
            self.pool.submit(loaded, flight.handle, flight.seq, flight.data)
        except LlmlbError as error:
            await self._fail(flight, error)

    async def _begin(self, flight: Flight) -> None:
        """Wait for the model, telling the client's side that it lives, then hand the request to the worker."""
        loading = asyncio.ensure_future(self._ready(flight))  # noqa: TID251  # awaited right below
        try:
            while not (await asyncio.wait([loading], timeout=LOADING_PROGRESS_S))[0]:
                percent = self.pool.loading_percent(flight.model.info.name)
                progress = Progress(
                    request_id=flight.request_id, seq=flight.seq, phase="loading", done=percent, total=100
                )
                await self._send(flight, progress)
            await self._hand_over(flight, await loading)
        except LlmlbError as error:
            await self._fail(flight, error)
        except asyncio.CancelledError:
            if not loading.cancel() and not loading.cancelled() and loading.exception() is None:
                self.pool.release(loading.result())
            await self._fail(flight, Cancelled("the request was cancelled"))
            raise
        finally:
            flight.waiting = None

    async def _ready(self, flight: Flight) -> Loaded:
        """The model, and all of the request."""
        if flight.bulk is not None:
            flight.data = await self._bulk.fetch(flight.bulk)
        return await self.pool.ready(flight.model)

    async def _publish(self, subject: str, message: InferReply) -> None:
        try:
            await self._bus.publish(subject, message)
        except BusError as error:
            log.debug("reply_lost error=%s", error.message)

    async def _send(self, flight: Flight, message: InferReply) -> None:
        flight.seq += 1
        await self._publish(flight.reply, message)

    async def _fail(self, flight: Flight, error: LlmlbError) -> None:
        if self._forget(flight.handle) is not None and not flight.cancelled:
            await self._send(flight, Failed(request_id=flight.request_id, seq=flight.seq, error=WireError.of(error)))

    def _forget(self, handle: int) -> Flight | None:
        flight = self._flights.pop(handle, None)
        if flight is not None:
            flight.stop_clock()
            if self._by_request.get(flight.request_id) == handle:
                del self._by_request[flight.request_id]
            if not self._flights:
                self._idle.set()
        return flight

    async def _on_reply(self, handle: int, data: bytes, last: bool) -> None:
        flight = self._forget(handle) if last else self._flights.get(handle)
        if last and flight is not None:
            self._speeds.answered(flight.model.info.name, data)
        if flight is None or flight.cancelled:
            return
        flight.seq += 1
        try:
            await self._bus.publish_bytes(flight.reply, data)
        except MessageTooLarge as error:
            await self._too_large(flight, len(data), error)
        except BusError:
            # The reader will see a gap; what it can't read need not be computed.
            flight.cancelled = True
            if flight.loaded is not None:
                self.pool.cancel(flight.loaded, handle)

    async def _too_large(self, flight: Flight, size: int, error: MessageTooLarge) -> None:
        """The bus does not take a reply: the request ends with it."""
        flight.seq -= 1  # the one that was not sent has no number
        self._forget(flight.handle)
        failure = WireError.of(answer_too_large(size, self._bus.client.max_payload, error))
        await self._send(flight, Failed(request_id=flight.request_id, seq=flight.seq, error=failure))
        self._give_up(flight)

    async def _end_late(self, flight: Flight) -> None:
        await self._fail(flight, DeadlineExceeded("the time that the request was given is over"))
        self._give_up(flight)

    async def _on_crash(self, handles: list[int], error: LlmlbError) -> None:
        for handle in handles:
            if (flight := self._flights.get(handle)) is not None:
                await self._fail(flight, error)

    async def _on_cancel(self, msg: Msg) -> None:
        request = codec.decode_as(CancelRequest, msg.data)
        handle = self._by_request.get(request.request_id)
        flight = None if handle is None else self._flights.get(handle)
        if flight is not None and request.attempt in (None, flight.attempt):
            self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        """Nobody reads it any more."""
        flight.cancelled = True
        if flight.loaded is not None:
            self.pool.cancel(flight.loaded, flight.handle)
        elif flight.waiting is not None:
            flight.waiting.cancel()

    # End

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work, let what runs finish for up to ``timeout_s``, then fail the rest as NodeLost.

        Pulls end meanwhile: they go on when the node is back.
        """
        self._draining = True
        self.heart.draining = True
        began = time.monotonic()
        log.info("node_draining running=%d at_most_s=%.0f", len(self._flights), timeout_s)
        if self._bus.connected:
            await self.heart.beat()
        async with asyncio.TaskGroup() as group:
            if self.models is not None:
                group.create_task(self.models.close())
            group.create_task(self._until_idle(timeout_s))
        for flight in list(self._flights.values()):
            await self._fail(flight, NodeLost("the node is shutting down"))
        log.info("node_drained seconds=%.1f", time.monotonic() - began)

    async def _until_idle(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_timed_out running=%d", len(self._flights))

    async def close(self) -> None:
        """Say goodbye and end every worker. Never raises."""
        await self.heart.stop()
        await self._unsubscribe()
        if self.models is not None:
            await self.models.close()
        await self._background.close()
        await self._bulk.close()
        await self.pool.close()
        self._hardware.close()
        await asyncio.to_thread(self._catalog.close)
