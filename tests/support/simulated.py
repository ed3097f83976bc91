"""Simulated nodes for tests and benchmarks: real node agents on one connection, hundreds of them in one process."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llmlb.bus import codec
from llmlb.bus.connection import PENDING_MESSAGES, Bus
from llmlb.bus.errors import BusDown, LlmlbError
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.errors import RpcFailed, WireError
from llmlb.node.agent import NodeAgent
from llmlb.node.engine.pool_interface import MakePool
from llmlb.node.engine.simulated import SimulatedSpec
from llmlb.node.engine.simulated_pool import SimulatedPool, SimulatedSource, Timer, simulated_pool
from llmlb.node.hardware import Hardware, HardwareReading
from llmlb.node.heartbeat import FIRST_BEATS, FIRST_INTERVAL_S, INTERVAL_S, LEAST_GAP_S, Heart
from llmlb.node.store.catalog import Catalog

MODEL = "simulated/tiny"
JOINING = 32
"""Nodes that are started at the same time by :func:`simulated_nodes`."""


class NodeBus(Bus):
    """One node's part of a connection that others use too: its subscriptions end with the node.

    Rpc handlers are plain subscriptions here, as FastStream's can't be added to a connection that is open already.
    """

    def __init__(self, bus: Bus) -> None:
        # Not Bus.__init__: there is one connection, and it belongs to ``bus``.
        self.settings, self.name, self.client, self.control = bus.settings, bus.name, bus.client, bus.control
        self.cut = False
        """True: this node can't reach the bus, whatever the others can."""
        self._shared = bus
        self._subscriptions: list[Subscription] = []
        self._endpoints: list[tuple[str, Callable[[Msg], Awaitable[None]]]] = []

    @property
    def connected(self) -> bool:
        return not self.cut and self._shared.connected

    async def wait_up(self) -> None:
        await self._shared.wait_up()

    def on_up(self, callback: Callable[[], Awaitable[None]]) -> None:
        async def unless_cut() -> None:
            if not self.cut:
                await callback()

        self._shared.on_up(unless_cut)

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, pending_messages: int = PENDING_MESSAGES
    ) -> Subscription:
        made = await super().subscribe(subject, callback, pending_messages=pending_messages)
        self._subscriptions.append(made)
        return made

    def handle(
        self,
        subject: str,
        request: type[Any],
        answer: type[Any],
        handler: Callable[[Any], Awaitable[Any]],
        *,
        queue: str = "",
    ) -> None:
        async def endpoint(msg: Msg) -> None:
            try:
                said: Message = await handler(codec.decode_as(request, msg.data))
            except LlmlbError as error:
                said = RpcFailed(error=WireError.of(error))
            with contextlib.suppress(BusDown):
                await self.publish(msg.reply, said)

        self._endpoints.append((subject, endpoint))

    async def subscribe_handlers(self) -> None:
        """Offer what was registered with :meth:`handle`."""
        for subject, endpoint in self._endpoints:
            await self.subscribe(subject, endpoint)

    async def leave(self) -> None:
        """End this node's subscriptions; a request to it meets no responders from now on."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            with contextlib.suppress(Exception):  # the connection may be gone, and then so are they
                await subscription.unsubscribe()


class StillHardware(Hardware):
    """A machine that never changes, so that nothing has to be read."""

    READING = HardwareReading(cpu_percent=1.0, memory_total_bytes=2**34, memory_available_bytes=2**33, gpus=())

    def __init__(self) -> None:
        """Nothing is opened."""

    def read(self) -> HardwareReading:
        return self.READING

    def close(self) -> None:
        """Nothing was opened."""


STILL = StillHardware()


class CheapHeart(Heart):
    """Beats as the real one, but without a thread: going to one and back costs 170 µs a beat."""

    async def _run(self) -> None:
        beats = 0
        while True:
            beats += 1
            self._soon.clear()
            await self.beat()
            await asyncio.sleep(LEAST_GAP_S)
            pause = FIRST_INTERVAL_S if beats < FIRST_BEATS else INTERVAL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - LEAST_GAP_S):
                    await self._soon.wait()


class SimulatedAgent(NodeAgent):
    """The real agent, on hardware that costs nothing to read."""

    def __init__(self, bus: Bus, catalog: Catalog, node_id: str, make_pool: MakePool) -> None:
        super().__init__(bus.settings, bus, catalog, node_id, make_pool)
        self._hardware = STILL
        self.heart = CheapHeart(bus, node_id, STILL, catalog, self.pool, load=lambda: len(self._flights))


class SimulatedNode:
    """One node on ``bus``, which may be open already and may be shared by any number of nodes.

    ``timer`` should be shared by all nodes of a process. What goes wrong is in ``spec.faults``; more can be added to
    ``pool.faults`` at any time. :meth:`stop` is a goodbye, :meth:`kill` is none.
    """

    def __init__(
        self,
        bus: Bus,
        spec: SimulatedSpec | None = None,
        *,
        models: Sequence[str] = (MODEL,),
        node_id: str | None = None,
        timer: Timer | None = None,
    ) -> None:
        self.node_id = node_id or uuid.uuid4().hex
        self.spec = spec or SimulatedSpec()
        self.bus = NodeBus(bus)
        self.catalog = Catalog([SimulatedSource(models, context_length=self.spec.context_length)])
        self.agent = SimulatedAgent(self.bus, self.catalog, self.node_id, simulated_pool(self.spec, timer))
        self.agent.register()

    @property
    def pool(self) -> SimulatedPool:
        return cast(SimulatedPool, self.agent.pool)

    @property
    def running(self) -> int:
        """Requests on its models, waiting ones included."""
        return sum(len(loaded.handles) for loaded in self.pool.loaded())

    async def start(self) -> None:
        """Take work, and tell the cluster."""
        await self.bus.subscribe_handlers()
        await self.agent.run("127.0.0.1:1")

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new work, let what runs finish for ``drain_s``, say goodbye."""
        await self.agent.drain(drain_s)
        await self.agent.close()
        await self.bus.leave()

    async def kill(self) -> None:
        """Be gone, as with kill -9: no goodbye, and no last reply to anybody."""
        self.bus.cut = True
        await self.bus.leave()
        await self.agent.close()


@contextlib.asynccontextmanager
async def simulated_nodes(
    bus: Bus, count: int, spec: SimulatedSpec | None = None, *, models: Sequence[str] = (MODEL,)
) -> AsyncIterator[list[SimulatedNode]]:
    """That many equal nodes on one connection and one timer, started; gone without a goodbye at the end."""
    timer = Timer()
    nodes = [SimulatedNode(bus, spec, models=models, timer=timer) for _ in range(count)]
    try:
        for begin in range(0, count, JOINING):
            async with asyncio.TaskGroup() as group:
                for node in nodes[begin : begin + JOINING]:
                    group.create_task(node.start())
        yield nodes
    finally:
        for node in nodes:
            await node.kill()
