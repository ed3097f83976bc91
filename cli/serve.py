"""Start and end the processes' parts: bus, router, node, gateways. The only module of cli that knows all rooms.

Order of the end (SIGTERM, Ctrl+C): refuse new work, let running answers finish for ``LLMLB_DRAIN_TIMEOUT``, end the
gateways, the workers, the bus connection, and last the embedded bus if it is ours. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import llmlb
from llmlb.bus import logs
from llmlb.bus.connection import Bus
from llmlb.bus.errors import ConfigError, LlmlbError
from llmlb.bus.settings import ROUTER_PORT, Settings
from llmlb.bus.tasks import Background
from llmlb.cli import banner
from llmlb.cli.exit_codes import GENERAL, INTERRUPTED, OK
from llmlb.cli.workers import Workers
from llmlb.node.agent import NodeAgent
from llmlb.node.identity import Identity
from llmlb.node.store.bundled import BundledSource
from llmlb.node.store.catalog import Catalog, Source
from llmlb.node.store.installed import Store
from llmlb.node.store.local import LocalSource
from llmlb.node.store.ollama import OllamaSource
from llmlb.node.store.usage import LastUsed
from llmlb.router.control import RouterControl
from llmlb.router.dispatch import Dispatcher
from llmlb.router.fleet import Fleet
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.metered import Metered
from llmlb.router.gateway.metrics import Exposition
from llmlb.router.gateway.ports import Gateway
from llmlb.router.history import History
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.office import Office
from llmlb.router.metrics import Metrics
from llmlb.router.node_rpc import NodeRpc
from llmlb.router.responses import ResponseStore

log = logging.getLogger("llmlb.cli.serve")

READY_POLL_S = 0.05
SLOW_START_S = 10.0
GC_OBJECTS = 20_000
"""New objects between two looks of the garbage collector: some 3% of a gateway's CPU time at Python's 700."""


class _Ready:
    """Green when the bus is reachable, everything behind the gateway has begun, and it is known who may."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus = bus
        self._directory = directory
        self.started = False

    @property
    def ready(self) -> bool:
        return self.started and self._bus.connected and self._directory.known


def _exposition(role: str, metrics: Metrics, bus: Bus, fleet: Fleet, history: History | None = None) -> Exposition:
    return Exposition(
        metrics,
        bus,
        fleet.nodes,
        build=(role, llmlb.__version__),
        breakers=fleet.loads.breakers.states,
        history=history,
    )


class RouterRole:
    """Router and gateway in this process."""

    def __init__(self, settings: Settings, *, worker: bool = False) -> None:
        """``worker``: a further process of a router, on its port."""
        self._settings = settings
        self._worker = worker
        further = settings.router_workers - 1
        self._workers = Workers(settings, further) if further and not worker else None
        self.bus = Bus(settings, "llmlb-router")
        self.fleet = Fleet(self.bus)
        metrics = Metrics(self.fleet.list_models)
        self._dispatcher = Dispatcher(self.bus, self.fleet, metrics)
        self._history = History(self.bus, settings.home / "router.db")
        control = RouterControl(self.fleet, self._history, self._dispatcher.waiting)
        control.register(self.bus)
        self.directory = Directory(self.bus)
        self._office = Office(self.directory, time.monotonic)
        self.ready = _Ready(self.bus, self.directory)
        self.server = GatewayServer(
            build_app(
                Gateway(
                    role="router",
                    settings=settings,
                    version=llmlb.__version__,
                    inference=Metered(self._dispatcher, self.directory),
                    identity=self._office,
                    models=self.fleet,
                    readiness=self.ready,
                    router_ops=control,
                    node_ops=None,
                    node_id=None,
                    history=self._history,
                    metrics=_exposition("router", metrics, self.bus, self.fleet, self._history),
                    responses=ResponseStore(self.bus),
                )
            )
        )

    @property
    def is_worker(self) -> bool:
        return self._worker

    async def start(self) -> None:
        """The gateway listens at once; the rest begins when the bus is up. Raises ConfigError (port taken)."""
        shared = self._worker or self._workers is not None
        await self.server.start(self._settings.router_bind, self._settings.router_port, shared=shared)
        self.bus.open()

    async def run(self) -> None:
        await self.directory.start()
        await self.fleet.start()
        await self._dispatcher.start()
        if not self._worker:
            self._history.start()
        if self._workers is not None:
            self._workers.start(self.server.port)

    async def stop(self) -> None:
        if self._workers is not None:
            await self._workers.stop()
        await self.server.stop(self._settings.drain_timeout_s)
        await self._dispatcher.close()
        await self._history.close()
        await self.fleet.close()
        await self.directory.close()
        self._office.close()


class NodeRole:
    """Node agent and its own gateway in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._identity = Identity(settings.home)
        self.node_id = self._identity.node_id
        self.bus = Bus(settings, f"llmlb-node-{self.node_id[:12]}")
        models = settings.home / "models"
        store = Store(models)
        store.recover()
        sources: list[Source] = [LocalSource(models), OllamaSource(settings.ollama_models), BundledSource()]
        self._catalog = Catalog(sources, LastUsed(models))
        self.agent = NodeAgent(settings, self.bus, self._catalog, self.node_id, store=store)
        self.agent.register()
        self.fleet = Fleet(self.bus, only=self.node_id)
        metrics = Metrics(self.fleet.list_models)
        self._dispatcher = Dispatcher(self.bus, self.fleet, metrics)
        self.directory = Directory(self.bus)
        self._office = Office(self.directory, time.monotonic)
        self.ready = _Ready(self.bus, self.directory)
        self.server = GatewayServer(
            build_app(
                Gateway(
                    role="node",
                    settings=settings,
                    version=llmlb.__version__,
                    inference=Metered(self._dispatcher, self.directory),
                    identity=self._office,
                    models=self.fleet,
                    readiness=self.ready,
                    router_ops=None,
                    node_ops=NodeRpc(self.bus, self.node_id),
                    node_id=self.node_id,
                    metrics=_exposition("node", metrics, self.bus, self.fleet),
                    responses=ResponseStore(self.bus),
                )
            )
        )

    async def start(self) -> None:
        """As :meth:`RouterRole.start`."""
        await self.server.start(self._settings.node_bind, self._settings.node_port)
        self.bus.open()

    async def run(self) -> None:
        await self.directory.start()
        await self.fleet.start()
        await self._dispatcher.start()
        await self.agent.run(f"{self._settings.node_bind}:{self.server.port}")

    async def stop(self) -> None:
        await self.agent.drain(self._settings.drain_timeout_s)
        await self.server.stop(1.0)
        await self._dispatcher.close()
        await self.agent.close()
        await asyncio.to_thread(self._catalog.close)
        await self.fleet.close()
        await self.directory.close()
        self._office.close()
        self._identity.close()


Role = RouterRole | NodeRole


def _loop_until_told(main: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    async def run() -> int:
        stop = asyncio.Event()

        def told() -> None:
            if stop.is_set():
                sys.stdout.flush()
                os._exit(INTERRUPTED)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told)
        return await main(stop)

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        return runner.run(run())


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which comes with Sanic where it exists; else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(roles: list[Role], settings: Settings, stop: asyncio.Event, banner: Callable[[], str]) -> int:
    if settings.auth == "off":
        log.warning("auth_off every peer that reaches the port may use it")
    background = Background("serve")
    refused: list[ConfigError] = []

    def give_way(error: ConfigError) -> None:
        refused.append(error)
        stop.set()

    try:
        for role in roles:
            if isinstance(role, NodeRole):
                role.agent.on_second = give_way
            await role.start()
        running = [background.start(role.run(), f"run.{index}") for index, role in enumerate(roles)]
        started = background.start(_announce(roles, running, settings, stop, banner), "announce")
        await stop.wait()
        log.info("stopping")
        failed = refused or (started.done() and started.result() is False)
    finally:
        await _stop(roles, background)
    log.info("stopped")
    return GENERAL if failed else OK


async def _announce(
    roles: list[Role],
    running: list[asyncio.Task[None]],
    settings: Settings,
    stop: asyncio.Event,
    banner: Callable[[], str],
) -> bool:
    """Print the start-up block once everything runs; until then say what is waited for.

    False when a part could not start: ``stop`` is then set.
    """
    began = time.monotonic()
    try:
        while (await asyncio.wait(running, timeout=SLOW_START_S))[1]:
            log.warning("waiting_for_bus url=%s seconds=%.0f", settings.bus_url_shown, time.monotonic() - began)
        for task in running:
            task.result()
    except LlmlbError as error:
        log.error("start_failed error=%s detail=%s", error.message, error.detail)
        stop.set()
        return False
    except Exception:  # the top of a task: a process that can't work must end, and say why
        log.exception("start_failed")
        stop.set()
        return False
    await _until_models_known(roles, stop)
    for role in roles:
        role.ready.started = True
    # What start-up made stays: the collector need not look at it again, nor after each 700 objects of a request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 20)
    if not any(isinstance(role, RouterRole) and role.is_worker for role in roles):
        print(banner(), flush=True)
    return True


async def _stop(roles: list[Role], background: Background) -> None:
    """End everything in order: nodes before the router that feeds them, the owner of the embedded bus last."""
    await background.close()
    for role in roles:
        role.bus.hold()
    ends = [role.stop for role in reversed(roles)]
    ends += [bus.close for bus in sorted((role.bus for role in roles), key=lambda bus: bus.owns_server)]
    for end in ends:
        try:
            await end()
        except Exception:  # whatever fails, the rest has to be ended too
            log.exception("stop_failed")


async def _until_models_known(roles: list[Role], stop: asyncio.Event) -> None:
    """With a node of our own: until every gateway knows its models, so that who is told of it may ask at once."""
    deadline = time.monotonic() + SLOW_START_S
    if any(isinstance(role, NodeRole) for role in roles):
        while not stop.is_set() and time.monotonic() < deadline:
            if all(role.fleet.settled() for role in roles):
                return
            await asyncio.sleep(READY_POLL_S)


def _first_model(fleet: Fleet) -> str | None:
    models = fleet.list_models()
    if not models:
        return None
    return models[0].aliases[0] if models[0].aliases else models[0].name


def _banner(title: str, settings: Settings, roles: list[Role]) -> str:
    lines = ["", f"llmlb {llmlb.__version__}: {title} is ready", f"  bus     {settings.bus_url_shown}"]
    for role in roles:
        if isinstance(role, RouterRole):
            lines.append(f"  router  http://{banner.local(settings.router_bind)}:{role.server.port}/v1")
        else:
            lines.append(
                f"  node    http://{banner.local(settings.node_bind)}:{role.server.port}/v1   id {role.node_id[:12]}"
            )
    model = _first_model(roles[-1].fleet)
    first = roles[0]
    bind = settings.router_bind if isinstance(first, RouterRole) else settings.node_bind
    if model is not None:
        lines += ["", "Ask it:", banner.curl(f"{banner.local(bind)}:{first.server.port}", model)]
    nodes = [role for role in roles if isinstance(role, NodeRole)]
    if model is not None and nodes:
        program = "llmlb" if not sys.argv[0].endswith("llmlb") else sys.argv[0]
        prefix = "" if nodes[0].server.port == 32769 else f"LLMLB_HOST=127.0.0.1:{nodes[0].server.port} "
        lines += ["", "Or talk to it:", f"  {prefix}{program} node run {model}"]
    if not first.directory.has_users:
        usual = isinstance(first, RouterRole) and first.server.port == ROUTER_PORT
        lines += banner.first_admin(settings, bind, None if usual else first.server.port)
    lines += ["", "Ctrl+C ends it.", ""]
    return "\n".join(lines)


def _start(title: str, settings: Settings, make: Callable[[Settings], list[Role]]) -> int:
    """Run roles until a signal; the exit code. Raises ConfigError when they can't start."""
    logs.configure(debug=settings.debug)

    async def main(stop: asyncio.Event) -> int:
        roles = make(settings)
        return await _serve(roles, settings, stop, lambda: _banner(title, settings, roles))

    try:
        return _loop_until_told(main)
    except ConfigError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return GENERAL


def run_router(settings: Settings, *, worker: bool = False) -> int:
    """``llmlb router serve``. ``worker``: as a further process of a router that runs already."""
    return _start("the router", settings, lambda s: [RouterRole(s, worker=worker)])


def run_node(settings: Settings) -> int:
    """``llmlb node serve``."""
    return _start("the node", settings, lambda s: [NodeRole(s)])


def run_all(settings: Settings) -> int:
    """``llmlb serve``: a bus, a router and a node for one machine."""
    return _start("the cluster", settings, lambda s: [RouterRole(s), NodeRole(s)])
