"""Clients that take their time, and many that do nothing: none of them holds up another, and none stays for ever."""

from __future__ import annotations

import contextlib
import re
import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Process, wait_until
from tests.support.hostile import CHAT, IDLE_S, PATIENCE_S, chat, good, hostile_site, resident_bytes, unharmed
from tests.support.raw_http import RawClient, raw, request
from tests.support.simcluster import SimCluster

CAP_S = PATIENCE_S + 8
"""With room for a slow machine."""
IDLE = 2000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCluster]:
    """A router without much patience, started with few open files allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with contextlib.ExitStack() as stack:
            it = stack.enter_context(hostile_site(tmp_path_factory.mktemp("slow")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            yield it
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def router(site: SimCluster) -> Iterator[Process]:
    """Afterwards nothing runs, and a good request is answered."""
    yield site.routers[0]
    unharmed(site)


@contextlib.contextmanager
def dripping(client: RawClient, data: bytes, every_s: float) -> Iterator[None]:
    """Send a byte now and then, until the end of the block."""
    stop = threading.Event()

    def drip() -> None:
        for at in range(len(data)):
            client.send(data[at : at + 1])
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("start", "drops"),
    [
        pytest.param(b"", request(CHAT, chat()), id="a head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: y\r\n" * 100, id="headers without end"),
        pytest.param(request(CHAT, chat())[:-30], b" " * 100, id="a body"),
        pytest.param(request(CHAT, chat())[:-30], b"", id="a body that stops"),
        pytest.param(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\n \r\n" * 100,
            id="chunks",
        ),
    ],
)
def test_who_drips_a_request_is_told_so_in_bounded_time_and_others_are_served_meanwhile(
    router: Process, start: bytes, drops: bytes
) -> None:
    clients = [RawClient(router.router_port or 0) for _ in range(20)]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.callback(client.close)
            client.send(start)
            stack.enter_context(dripping(client, drops, 0.2))
        good(router)
        for client in clients:
            answer = client.answer()
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert PATIENCE_S * 0.9 < time.monotonic() - began < CAP_S


def test_a_slow_body_that_goes_on_is_taken(router: Process) -> None:
    """Not the whole time counts, but silence, and a rate that is far too low."""
    body = chat(3) + b" " * 40_000
    data = request(CHAT, body)
    with raw(router.router_port or 0) as client:
        began = time.monotonic()
        at = 0
        while time.monotonic() - began < PATIENCE_S * 1.5:
            client.send(data[at : at + 2000])
            at += 2000
            assert not client.sock.recv(1, socket.MSG_DONTWAIT) if readable(client) else True
            time.sleep(0.2)  # the pace is what is tested
        client.send(data[at:])
        assert client.answer().status == 200


def readable(client: RawClient, timeout_s: float = 0) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(client.sock, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def test_two_thousand_idle_connections_disturb_nobody_and_are_closed(site: SimCluster, router: Process) -> None:
    limits = Path(f"/proc/{router.popen.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files +(\S+) +(\S+)", limits).groups()  # type: ignore[union-attr]
    if int(hard) < IDLE + 1000:
        pytest.skip(f"this machine allows a process {hard} open files")
    assert int(soft) > IDLE, "raised at the start"
    good(router)
    before = resident_bytes(router)
    port = router.router_port or 0
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        clients = [stack.enter_context(raw(port)) for _ in range(IDLE // 2)]
        for at, client in enumerate(clients):
            if at % 2:
                client.send(request("/health"))
                assert client.answer().status == 200
        clients += [stack.enter_context(raw(port)) for _ in range(IDLE // 2)]
        good(router)
        assert resident_bytes(router) - before < 60_000_000
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ)
        ended = 0
        deadline = time.monotonic() + IDLE_S + 20
        while ended < IDLE:
            assert time.monotonic() < deadline, f"{ended} of {IDLE} were closed"
            for key, _ in selector.select(1):
                assert key.fileobj.recv(10) == b""  # type: ignore[union-attr]
                selector.unregister(key.fileobj)
                ended += 1


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.popen.pid}/fd").iterdir()))


def test_what_closed_clients_held_is_given_back(router: Process) -> None:
    good(router)
    before = open_files(router)
    for _ in range(100):
        with raw(router.router_port or 0) as client:
            client.send(request(CHAT, chat())[:40])
    wait_until(lambda: open_files(router) <= before + 5, CAP_S, "no file is left open")
