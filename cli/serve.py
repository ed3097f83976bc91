"""Start and end the processes' parts: bus, router, node, gateways. The only module of cli that knows all rooms.

Order of the end (SIGTERM, Ctrl+C): refuse new work, let running answers finish for ``LLMLB_DRAIN_TIMEOUT``, end the
gateways, the workers, the bus connection, and last the embedded bus if it is ours. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import shlex
import sys
import time
import uuid
from collections.abc import Callable

import llmlb
from llmlb.bus import logs
from llmlb.bus.connection import Bus
from llmlb.bus.errors import ConfigError, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background
from llmlb.cli import banner
from llmlb.cli.exit_codes import GENERAL, OK
from llmlb.cli.render import gpu_name
from llmlb.cli.role_parts import Ready, each, exposition
from llmlb.cli.until_told import loop_until_told, usable
from llmlb.cli.workers import Workers, child_environ
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
from llmlb.router.gateway.ports import Gateway
from llmlb.router.history_process import HistoryProcess
from llmlb.router.hub.hub import ModelHub
from llmlb.router.identity.directory import Directory
from llmlb.router.identity.office import Office
from llmlb.router.live import Live
from llmlb.router.metrics import Metrics
from llmlb.router.node_rpc import NodeRpc
from llmlb.router.responses import ResponseStore
from llmlb.router.siblings import Siblings

log = logging.getLogger("llmlb.cli.serve")

READY_POLL_S = 0.05
SLOW_START_S = 10.0
GC_OBJECTS = 20_000
"""New objects between two looks of the garbage collector: some 3% of a gateway's CPU time at Python's 700."""


class RouterRole:
    """Router and gateway in this process."""

    def __init__(self, settings: Settings, *, worker: str = "") -> None:
        """``worker``: a further process of a router, on its port; ``GROUP.NUMBER`` as :class:`Workers` gives it."""
        self._settings = settings
        self._worker = bool(worker)
        group, number = worker.rsplit(".", 1) if worker else (uuid.uuid4().hex, "0")
        further = settings.router_workers - 1
        self._workers = Workers(settings, further, group) if further and not worker else None
        self.bus = Bus(settings, "llmlb-router")
        self.fleet = Fleet(self.bus)
        metrics = Metrics(self.fleet.list_models)
        self._dispatcher = Dispatcher(self.bus, self.fleet, metrics)
        self._history = HistoryProcess(settings.home / "router.db", child_environ(settings))
        own_history = None if worker else self._history
        self._siblings = self._siblings_of(group, int(number), own_history) if further else None
        speaker = self._siblings or self._dispatcher
        control = RouterControl(self.fleet, self._siblings or self._history, speaker.waiting)
        shown = exposition("router", metrics, self.bus, self.fleet, own_history, self._siblings)
        control.register(self.bus)
        self.hub = ModelHub(self.bus, self.fleet)
        self.hub.register_rpc()
        self._live = Live(self.bus, self.fleet, self.hub, llmlb.__version__)
        self.directory = Directory(self.bus)
        self._office = Office(self.directory, time.monotonic)
        self.ready = Ready(self.bus, self.directory)
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
                    model_ops=self.hub,
                    live=self._live,
                    node_ops=None,
                    node_id=None,
                    history=self._history,
                    metrics=shown,
                    responses=ResponseStore(self.bus),
                    prompts_compared=self._dispatcher.prompts_compared,
                )
            )
        )

    def _siblings_of(self, group: str, number: int, history: HistoryProcess | None) -> Siblings:
        """What this process knows of the others of the same gateway."""
        count = self._settings.router_workers
        return Siblings(self.bus, group, number, count, waiting=self._dispatcher.waiting, history=history)

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
        await self.hub.start()
        await self._dispatcher.start()
        await self._live.start()
        if not self._worker:
            self._history.start()
        if self._siblings is not None:
            await self._siblings.start()
        if self._workers is not None:
            self._workers.start(self.server.port)

    def beside(self, node: NodeRole) -> None:
        """This node is part of the same process."""
        self._dispatcher.prober.here = node.is_here

    async def stop(self) -> None:
        if self._workers is not None:
            await each(self._workers.stop)
        self._live.end_clients()
        await each(
            functools.partial(self.server.stop, self._settings.drain_timeout_s),
            *(self._live.close, self._dispatcher.close, self._history.close, self.hub.close),
            *((self._siblings.close,) if self._siblings is not None else ()),
            *(self.fleet.close, self.directory.close),
        )
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
        self._dispatcher.prober.here = self.is_here
        self.directory = Directory(self.bus)
        self._office = Office(self.directory, time.monotonic)
        self.ready = Ready(self.bus, self.directory)
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
                    metrics=exposition("node", metrics, self.bus, self.fleet),
                    responses=ResponseStore(self.bus),
                )
            )
        )

    def is_here(self, node_id: str) -> bool:
        """Whether that node is this one, and on the bus."""
        return node_id == self.node_id and self.bus.connected

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
        await each(
            functools.partial(self.agent.drain, self._settings.drain_timeout_s),
            *(functools.partial(self.server.stop, 1.0), self._dispatcher.close, self.agent.close),
            *(functools.partial(asyncio.to_thread, self._catalog.close), self.fleet.close, self.directory.close),
        )
        self._office.close()
        self._identity.close()


Role = RouterRole | NodeRole


async def _serve(roles: list[Role], settings: Settings, stop: asyncio.Event, begun: Callable[[], banner.Begun]) -> int:
    if settings.auth == "off":
        log.warning("auth_off every peer that reaches the port may use it")
    background = Background("serve")
    refused: list[LlmlbError] = []

    def give_way(error: LlmlbError) -> None:
        refused.append(error)
        stop.set()

    try:
        for role in roles:
            role.bus.on_lost = give_way
            if isinstance(role, NodeRole):
                role.agent.on_second = give_way
            await role.start()
        running = [background.start(role.run(), f"run.{index}") for index, role in enumerate(roles)]
        started = background.start(_announce(roles, running, settings, stop, begun), "announce")
        await stop.wait()
        if not refused and not any(isinstance(role, RouterRole) and role.is_worker for role in roles):
            _say(settings, banner.ending(settings.drain_timeout_s), "ending", drain_s=settings.drain_timeout_s)
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
    begun: Callable[[], banner.Begun],
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
        _say_begun(settings, begun())
    return True


def _say_begun(settings: Settings, begun: banner.Begun) -> None:
    addresses = ",".join(f"{part.role}=http://{banner.local(part.bind)}:{part.port}" for part in begun.parts)
    models = ",".join(name for name, _ in begun.models)
    _say(
        settings,
        banner.block(begun, settings),
        "begun",
        version=begun.version,
        addresses=addresses,
        bus=begun.bus,
        gpus=",".join(begun.gpus),
        models=models,
    )


async def _stop(roles: list[Role], background: Background) -> None:
    """End everything in order: nodes before the router that feeds them, the owner of the embedded bus last."""
    await background.close()
    for role in roles:
        role.bus.hold()
    ends = [role.stop for role in reversed(roles)]
    ends += [bus.close for bus in sorted((role.bus for role in roles), key=lambda bus: bus.owns_server)]
    await each(*ends)


async def _until_models_known(roles: list[Role], stop: asyncio.Event) -> None:
    """With a node of our own: until every gateway knows its models, so that who is told of it may ask at once."""
    deadline = time.monotonic() + SLOW_START_S
    if any(isinstance(role, NodeRole) for role in roles):
        while not stop.is_set() and time.monotonic() < deadline:
            if all(role.fleet.settled() for role in roles):
                return
            await asyncio.sleep(READY_POLL_S)


def _begun(title: str, settings: Settings, roles: list[Role]) -> banner.Begun:
    parts = []
    for role in roles:
        users = role.directory.has_users
        if isinstance(role, RouterRole):
            parts.append(banner.Part("router", settings.router_bind, role.server.port, has_users=users))
        else:
            parts.append(banner.Part("node", settings.node_bind, role.server.port, role.node_id, has_users=users))
    models = roles[-1].fleet.list_models()
    return banner.Begun(
        title=title,
        version=llmlb.__version__,
        parts=parts,
        bus=settings.bus_url_shown,
        owns_bus=any(role.bus.owns_server for role in roles),
        gpus=[
            gpu_name(gpu.name) for role in roles if isinstance(role, NodeRole) for gpu in role.agent.heart.reading.gpus
        ],
        models=[(model.name, model.aliases) for model in models],
        program=shlex.quote(sys.argv[0]) if sys.argv[0].endswith("llmlb") else "llmlb",
    )


def _say(settings: Settings, text: str, event: str, **fields: object) -> None:
    """For people as it is; where programs read along, as an event."""
    if settings.log_format == "text":
        with contextlib.suppress(OSError):  # who read it may have gone: that ends no server
            print(text, flush=True)
    else:
        log.info(" ".join([event, *(f"{key}=%s" for key in fields)]), *fields.values())


def _start(title: str, settings: Settings, make: Callable[[Settings], list[Role]]) -> int:
    """Run roles until a signal; the exit code. Raises ConfigError when they can't start."""
    logs.configure(debug=settings.debug, form=settings.log_format)
    logging.raiseExceptions = settings.debug  # else each line for a reader that has gone is a traceback

    async def main(stop: asyncio.Event) -> int:
        roles = make(settings)
        return await _serve(roles, settings, stop, lambda: _begun(title, settings, roles))

    try:
        usable(settings.home)
        return loop_until_told(main)
    except ConfigError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return GENERAL


def run_router(settings: Settings, *, worker: str = "") -> int:
    """``llmlb router serve``. ``worker``: as a further process of a router that runs already."""
    return _start("the router", settings, lambda s: [RouterRole(s, worker=worker)])


def run_node(settings: Settings) -> int:
    """``llmlb node serve``."""
    return _start("the node", settings, lambda s: [NodeRole(s)])


def run_all(settings: Settings) -> int:
    """``llmlb serve``: a bus, a router and a node for one machine."""

    def both(settings: Settings) -> list[Role]:
        router, node = RouterRole(settings), NodeRole(settings)
        router.beside(node)
        return [router, node]

    return _start("the cluster", settings, both)
