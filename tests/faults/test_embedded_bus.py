"""The embedded nats-server: who starts it, who takes it over, who ends it. Real processes, killed for real."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmlb.bus.buckets import open_bucket
from llmlb.bus.connection import Bus
from llmlb.bus.server import answers
from llmlb.bus.settings import Settings
from llmlb.bus.subjects import BUCKET_NODES
from tests.support.cluster import alive, children, free_port, wait_until

OWNER = """
import asyncio, sys
from pathlib import Path
from llmlb.bus.connection import Bus
from llmlb.bus.settings import Settings

async def main():
    bus = Bus(Settings.load({}, home=Path(sys.argv[1]), bus_url=sys.argv[2]), "owner")
    bus.open()
    await bus.wait_up()
    await asyncio.sleep(0.5)
    print("up", bus.owns_server, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def settings(home: Path, port: int) -> Settings:
    return Settings.load({}, home=home, bus_url=f"nats://127.0.0.1:{port}")


async def opened(home: Path, port: int) -> Bus:
    bus = Bus(settings(home, port), "test")
    bus.open()
    async with asyncio.timeout(15):
        await bus.wait_up()
    return bus


def start_owner(home: Path, port: int) -> subprocess.Popen[str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home), f"nats://127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline().strip() == "up True"
    return owner


async def test_a_bus_is_started_where_none_answers_and_ends_with_its_owner(tmp_path: Path) -> None:
    port = free_port()
    bus = await opened(tmp_path, port)
    assert bus.owns_server
    assert bus.client.max_payload == 8 * 1024 * 1024
    servers = children(os.getpid())
    await bus.close()
    assert not answers("127.0.0.1", port)
    assert not any(alive(pid) for pid in servers if pid not in children(os.getpid()))


async def test_a_bus_that_answers_is_used(tmp_path: Path) -> None:
    port = free_port()
    first = await opened(tmp_path / "a", port)
    second = await opened(tmp_path / "b", port)
    assert first.owns_server
    assert not second.owns_server
    assert not (tmp_path / "b" / "bus" / "nats-server.log").exists()
    await second.close()
    await first.close()


async def test_several_that_start_at_once_have_one_bus(tmp_path: Path) -> None:
    port = free_port()
    buses = await asyncio.gather(*(opened(tmp_path / str(number), port) for number in range(4)))
    assert sum(bus.owns_server for bus in buses) == 1
    for bus in sorted(buses, key=lambda bus: bus.owns_server):
        await bus.close()


async def test_another_process_takes_over_with_the_same_store_when_the_owner_is_killed(tmp_path: Path) -> None:
    port = free_port()
    owner = await asyncio.to_thread(start_owner, tmp_path / "owner", port)
    heir = await opened(tmp_path / "heir", port)
    try:
        assert not heir.owns_server
        bucket = await open_bucket(heir.client, BUCKET_NODES)
        await bucket.put("kept", b"value")
        await asyncio.sleep(0.3)  # the heir learns the store's folder in the background after it has connected
        server = children(owner.pid)
        assert len(server) == 1
        owner.kill()
        owner.wait(10)
        async with asyncio.timeout(10):
            while not (heir.owns_server and heir.connected):
                await asyncio.sleep(0.02)
        assert not alive(server[0]), "the owner's server died with it"
        bucket = await open_bucket(heir.client, BUCKET_NODES)
        assert (await bucket.get("kept")).value == b"value"
        assert not (tmp_path / "heir" / "bus" / "nats-server.log").exists(), "the store is the owner's"
    finally:
        await heir.close()
        assert owner.stdout is not None
        owner.stdout.close()


async def test_processes_that_start_at_once_agree_on_the_store_that_is_taken_over(tmp_path: Path) -> None:
    """The rest connect before the owner has said where its store is; each must learn it all the same."""
    port = free_port()
    buses = await asyncio.gather(*(opened(tmp_path / str(number), port) for number in range(3)))
    first = next(bus for bus in buses if bus.owns_server)
    heirs = [bus for bus in buses if bus is not first]
    try:
        await (await open_bucket(first.client, BUCKET_NODES)).put("kept", b"value")
        await asyncio.sleep(1)  # the heirs ask for the store every 0.2 s
        await first.close()
        async with asyncio.timeout(10):
            while not any(bus.owns_server and bus.connected for bus in heirs):
                await asyncio.sleep(0.02)
        second = next(bus for bus in heirs if bus.owns_server)
        assert (await (await open_bucket(second.client, BUCKET_NODES)).get("kept")).value == b"value"
    finally:
        for bus in sorted(buses, key=lambda bus: bus.owns_server):
            await bus.close()


async def test_a_server_that_is_killed_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    before = set(children(os.getpid()))
    bus = await opened(tmp_path, port)
    (server,) = set(children(os.getpid())) - before
    os.kill(server, signal.SIGKILL)
    async with asyncio.timeout(10):
        while bus.connected:
            await asyncio.sleep(0.01)
        await bus.wait_up()
    assert bus.owns_server
    await bus.close()


async def test_a_port_held_by_something_else_is_a_clear_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        stop = threading.Event()

        def deaf() -> None:
            taken.settimeout(0.1)
            while not stop.is_set():
                try:
                    taken.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=deaf)
        thread.start()
        bus = Bus(settings(tmp_path, taken.getsockname()[1]), "test")
        try:
            with caplog.at_level(logging.ERROR, "llmlb.bus.server"):
                bus.open()
                await asyncio.to_thread(wait_until, lambda: "embedded_bus_failed" in caplog.text, 10, "a log line")
                await asyncio.sleep(3)
        finally:
            await bus.close()
            stop.set()
            thread.join()
    assert caplog.text.count("embedded_bus_failed") == 1, "said once, not at each try"
    assert "held by something else" in caplog.text
