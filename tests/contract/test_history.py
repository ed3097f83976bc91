"""The projection of request records, on a real bus and a real file, with everything that may go wrong with either."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import nats.js.errors
import pytest

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BusDown, DeadlineExceeded, HistoryDown, QueueFull
from llmlb.bus.messages.requests import RequestRecord
from llmlb.bus.settings import Settings
from llmlb.bus.stream_reader import StreamReader
from llmlb.bus.streams import ensure_streams
from llmlb.router import history as history_module
from llmlb.router import history_query, history_questions
from llmlb.router import store as store_module
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.ports import Gateway
from llmlb.router.history import History
from llmlb.router.history_query import RequestFilter
from tests.support.natsd import NatsServer
from tests.support.records import NODE, record
from tests.unit.gateway.scripted import Scripted

MakeBus = Callable[..., Awaitable[Bus]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERY_S", "RETRY_S", "LOOK_S", "REST_S"):
        monkeypatch.setattr(history_module, name, 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "router.db"


@contextlib.asynccontextmanager
async def projecting(bus: Bus, path: Path) -> AsyncIterator[History]:
    history = History(bus, path, busy_timeout_s=0.05)
    history.start()
    try:
        yield history
    finally:
        await history.close()


async def send(bus: Bus, *records: RequestRecord | bytes) -> None:
    """Into the stream, whatever it takes."""
    for one in records:
        data = one if isinstance(one, bytes) else codec.encode(one)
        await bus.client.publish(subjects.request_record(NODE), data)
    await bus.client.flush()


async def until(true: Callable[[], bool | Awaitable[bool]], what: str = "") -> None:
    deadline = time.monotonic() + 15
    while True:
        found = true()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, f"not within 15 s: {what}"
        await asyncio.sleep(0.01)


async def ids(history: History) -> list[str]:
    try:
        return sorted(row["request_id"] for row in (await history.find(RequestFilter(limit=500)))[0])
    except HistoryDown:
        return []


def has(history: History, *wanted: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await ids(history) == sorted(wanted)

    return check


def said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(line.getMessage().startswith(event) for line in caplog.records)


async def test_records_become_rows_and_are_counted(bus: Bus, path: Path) -> None:
    async with projecting(bus, path) as history:
        await send(bus, record(request_id="a"), record(request_id="b", status="error", reason="node_lost"))
        await until(has(history, "a", "b"))
        assert history.last_hour == 2
        assert history.up
        whole = await history.get("a")
        assert whole is not None
        assert whole["answer"] == "Tokyo"
        assert abs(whole["stored_at"] - time.time()) < 60
        assert await history.get("c") is None


async def test_a_restart_goes_on_where_it_was_and_nothing_is_lost_or_twice(bus: Bus, path: Path) -> None:
    async with projecting(bus, path) as history:
        await send(bus, *(record(request_id=f"a{n}") for n in range(700)))
        await until(lambda: history.written == 700)
    await send(bus, *(record(request_id=f"b{n}") for n in range(30)))
    async with projecting(bus, path) as history:
        await until(lambda: history.last_hour == 730)
        await until(lambda: history.written == 30)
        db = sqlite3.connect(path)
        assert db.execute("SELECT count(*), count(DISTINCT request_id) FROM requests").fetchone() == (730, 730)
        db.close()


async def test_a_database_that_was_deleted_is_made_again_from_the_stream(bus: Bus, path: Path) -> None:
    async with projecting(bus, path) as history:
        await send(bus, record(request_id="a"))
        await until(has(history, "a"))
        for file in path.parent.glob("router.db*"):
            file.unlink()
        await until(lambda: path.exists(), "made again")
        await until(has(history, "a"))
        await send(bus, record(request_id="b"))
        await until(has(history, "a", "b"))
        assert history.last_hour == 2


async def test_a_damaged_database_is_set_aside_and_made_again(
    bus: Bus, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\x00garbage" * 4096)
    await send(bus, record(request_id="a"))
    async with projecting(bus, path) as history:
        await until(has(history, "a"))
    assert said(caplog, "history_damaged") == 1
    assert (path.parent / "router.db.damaged").read_bytes().startswith(b"\x00garbage")


async def test_a_database_damaged_while_in_use_is_noticed_by_questions(
    bus: Bus, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with projecting(bus, path) as history:
        await send(bus, *(record(request_id=f"a{n}") for n in range(300)))
        await until(lambda: history.written == 300)
        checkpoint = sqlite3.connect(path)
        checkpoint.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        checkpoint.close()
        with path.open("r+b") as file:  # all but the first page, so that it opens
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))
        with pytest.raises(HistoryDown):
            await history.find(RequestFilter())
        await until(lambda: history.written >= 600)
        assert len(await ids(history)) == 300
        assert history.last_hour == 300
    assert said(caplog, "history_not_written") == 1
    assert said(caplog, "history_works_again") == 1


async def test_a_locked_database_delays_rows_and_nothing_else(
    bus: Bus, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with projecting(bus, path) as history:
        await send(bus, record(request_id="a"))
        await until(has(history, "a"))
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        await send(bus, record(request_id="b"), record(request_id="c"))
        await until(lambda: not history.up, "it noticed")
        await until(lambda: history.last_hour == 3, "counted without the database")
        await asyncio.sleep(0.5)  # several tries
        assert await ids(history) == ["a"], "questions are answered"
        assert said(caplog, "history_not_written") == 1
        holder.execute("ROLLBACK")
        holder.close()
        await until(has(history, "a", "b", "c"))
        await until(lambda: history.up)
        assert history.last_hour == 3
        assert said(caplog, "history_works_again") == 1


async def test_a_full_disk_delays_rows_and_nothing_else(
    bus: Bus, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = sqlite3.connect

    def small(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = real(*args, **kwargs)
        db.execute("PRAGMA max_page_count = 40")
        return db

    with monkeypatch.context() as full:
        full.setattr(store_module.sqlite3, "connect", small)
        async with projecting(bus, path) as history:
            await send(bus, *(record(request_id=f"a{n}", answer="x" * 5000) for n in range(100)))
            await until(lambda: not history.up)
            await until(lambda: history.last_hour == 100)
            await asyncio.sleep(0.3)
            assert said(caplog, "history_not_written") == 1
            full.undo()
            await until(lambda: history.written == 100)
            assert len(await ids(history)) == 100
    assert said(caplog, "history_works_again") == 1


async def test_no_place_for_a_database_is_no_reason_to_stop(bus: Bus, path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    async with projecting(bus, path) as history:
        await send(bus, record(), record())
        await until(lambda: history.last_hour == 2)
        assert not history.up
        with pytest.raises(HistoryDown):
            await history.find(RequestFilter())


async def test_two_routers_of_one_home_share_a_database(bus: Bus, path: Path) -> None:
    async with projecting(bus, path) as one, projecting(bus, path) as other:
        for batch in range(5):
            await send(bus, *(record(request_id=f"{batch}-{n}") for n in range(20)))
            await until(lambda: one.last_hour == other.last_hour)
        await until(lambda: one.last_hour == 100 and other.last_hour == 100)
        await until(lambda: one.written + other.written == 100)
        assert len(await ids(one)) == 100


async def test_what_is_no_record_is_skipped_and_said_once(
    bus: Bus, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with projecting(bus, path) as history:
        await send(bus, b"\xff", record(request_id="a"), b'{"type": "llmlb.request.record.v9"}')
        await until(has(history, "a"))
        await send(bus, b"{}", record(request_id="b"))
        await until(has(history, "a", "b"))
        assert history.skipped == 3
    assert said(caplog, "request_record_unreadable") == 1


async def test_it_goes_on_when_the_bus_was_killed_and_came_back(
    server: NatsServer, bus: Bus, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with projecting(bus, path) as history:
        await send(bus, record(request_id="a"))
        await until(has(history, "a"))
        server.kill()
        await until(lambda: not bus.connected)
        assert await ids(history) == ["a"], "questions are answered without the bus"
        server.start()
        await until(lambda: bus.connected)
        assert bus.reconnects >= 1
        await send(bus, record(request_id="b"))
        await until(has(history, "a", "b"))
        assert history.last_hour == 2
    assert said(caplog, "history_failed") == 0


async def test_a_bus_that_lost_its_store_is_read_from_the_beginning(bus: Bus, path: Path) -> None:
    async with projecting(bus, path) as history:
        await send(bus, *(record(request_id=f"a{n}") for n in range(5)))
        await until(lambda: history.written == 5)
        await bus.client.jetstream().delete_stream(subjects.STREAM_REQUESTS)
        await ensure_streams(bus.client)
        await send(bus, *(record(request_id=f"b{n}") for n in range(8)))
        await until(lambda: history.written == 13)
        assert history.last_hour == 13
        assert len(await ids(history)) == 13


async def test_old_rows_and_bodies_beyond_the_limit_are_forgotten(
    bus: Bus, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "PRUNE_S", 0.05)
    monkeypatch.setattr(history_module, "PRUNE_ROWS", 7)
    async with projecting(bus, path) as history:
        await send(bus, *(record(request_id=f"a{n}") for n in range(30)))
        await until(lambda: history.written == 30)
        monkeypatch.setattr(history_module, "MAX_BYTES", 0)

        async def bodiless() -> bool:
            whole = await history.get("a29")
            return whole is not None and whole["answer"] is None

        await until(bodiless)
        assert len(await ids(history)) == 30
        monkeypatch.setattr(history_module, "KEEP_S", -60.0)
        await until(has(history))


async def test_too_many_questions_at_once_are_refused(bus: Bus, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_questions, "QUESTIONS_MAX", 3)
    async with projecting(bus, path) as history:
        await send(bus, record(request_id="a"))
        await until(has(history, "a"))
        answers = await asyncio.gather(*(history.find(RequestFilter()) for _ in range(5)), return_exceptions=True)
        assert [isinstance(answer, QueueFull) for answer in answers] == [False] * 3 + [True] * 2
        monkeypatch.setattr(history_query, "QUERY_TIMEOUT_S", -1.0)
        monkeypatch.setattr(history_query, "_STEPS", 1)
        with pytest.raises(DeadlineExceeded):
            await history.find(RequestFilter())


# The reader


async def test_a_reader_reads_from_any_place_and_any_time(bus: Bus) -> None:
    reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
    assert await reader.read(0, 10, 1000) == []
    await send(bus, *(b"%d" % number for number in range(1, 8)))
    first = await reader.read(0, 3, 10_000)
    assert [(message.sequence, message.data) for message in first] == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert [message.sequence for message in await reader.read(3, 100, 10_000)] == [4, 5, 6, 7]
    assert await reader.read(7, 100, 10_000) == []
    assert await reader.read(99, 100, 10_000) == []
    assert len(await reader.read_since(time.time() - 60, 100, 10_000)) == 7
    assert await reader.read_since(time.time() + 60, 100, 10_000) == []
    state = await reader.state()
    assert (state.first_sequence, state.last_sequence) == (1, 7)


async def test_a_message_larger_than_a_batch_is_read_all_the_same(bus: Bus) -> None:
    reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
    await send(bus, b"x" * 500_000, b"y" * 500_000, b"z")
    got: list[int] = []
    while batch := await reader.read(len(got), 10, 1000):
        got += [len(message.data) for message in batch]
    assert got == [500_000, 500_000, 1]


async def test_holes_in_a_stream_are_passed_over(bus: Bus) -> None:
    reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
    await send(bus, *(b"%d" % number for number in range(1, 8)))
    js = bus.client.jetstream()
    for number in (1, 2, 4, 5):
        for again in (True, True, False):
            try:
                await js.delete_msg(subjects.STREAM_REQUESTS, number)
                break
            except nats.js.errors.ServerError:  # nats-server, now and then, of a block it has just written: "EOF"
                if not again:
                    raise
    assert [message.sequence for message in await reader.read(0, 100, 10_000)] == [3, 6, 7]


async def test_a_batch_that_lost_a_message_on_the_way_ends_before_it(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
    await send(bus, *(b"%d" % number for number in range(1, 8)))
    await reader.read(0, 1, 1000)
    ((number, real),) = bus._parser.straight.items()

    def lossy(subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        if data != b"3":
            real(subject, data, headers)

    bus._parser.straight[number] = lossy
    assert [message.sequence for message in await reader.read(0, 100, 10_000)] == [1, 2]


async def test_a_stream_that_is_not_there_is_said_so(server: NatsServer, make_bus: MakeBus) -> None:
    bus = await make_bus(url=server.url)
    reader = StreamReader(bus, subjects.STREAM_REQUESTS, subjects.all_request_records())
    with pytest.raises(BusDown):
        await reader.state()
    with pytest.raises(BusDown):
        await reader.read(0, 10, 1000)


async def test_messages_that_a_slow_subscription_drops_are_counted(bus: Bus) -> None:
    go_on = asyncio.Event()

    async def slow(_: object) -> None:
        await go_on.wait()

    await bus.subscribe("llmlb.v1.test", slow, pending_messages=2)
    for _ in range(10):
        await bus.client.publish("llmlb.v1.test", b"")
    await until(lambda: bus.slow_consumers >= 5)
    go_on.set()


# Over HTTP


@contextlib.asynccontextmanager
async def asking(tmp_path: Path, history: History | None) -> AsyncIterator[httpx.AsyncClient]:
    scripted = Scripted()
    gateway = Gateway(
        role="router",
        settings=Settings.load({}, home=tmp_path),
        version="0",
        inference=scripted,
        models=scripted,
        readiness=scripted,
        router_ops=None,
        node_ops=None,
        node_id=None,
        history=history,
    )
    server = GatewayServer(build_app(gateway))
    await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}/v0", timeout=10) as client:
            yield client
    finally:
        await server.stop(0.1)


async def test_past_requests_are_read_over_http_page_by_page(bus: Bus, path: Path, tmp_path: Path) -> None:
    async with projecting(bus, path) as history, asking(tmp_path, history) as client:
        await send(bus, *(record(request_id=f"r{n}", model="m" if n % 2 else "other") for n in range(12)))
        await until(lambda: history.written == 12)
        seen: list[str] = []
        query: dict[str, str] = {"limit": "2", "model": "m"}
        while True:
            page = (await client.get("/requests", params=query)).json()
            seen += [row["request_id"] for row in page["requests"]]
            assert "answer" not in page["requests"][0]
            if page["next"] is None:
                break
            query["before"] = page["next"]
        assert seen == ["r11", "r9", "r7", "r5", "r3", "r1"]
        one = (await client.get("/requests/r11")).json()
        assert (one["request_id"], one["answer"]) == ("r11", "Tokyo")


async def test_bad_questions_over_http_are_refused_as_the_house_does(bus: Bus, path: Path, tmp_path: Path) -> None:
    async with projecting(bus, path) as history, asking(tmp_path, history) as client:
        await until(lambda: history.up)
        for query, param in (("limit=0", "limit"), ("status=fine", "status"), ("x=1", "x"), ("model=", "model")):
            answer = await client.get(f"/requests?{query}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
            assert answer.json()["error"]["code"] == "invalid_request"
        missing = await client.get("/requests/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        empty = await client.get("/requests")
        assert empty.json() == {"requests": [], "next": None}


async def test_a_history_that_can_not_be_read_is_a_503(bus: Bus, path: Path, tmp_path: Path) -> None:
    async with asking(tmp_path, History(bus, path)) as client:
        answer = await client.get("/requests")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "history_unavailable"
    async with asking(tmp_path, None) as client:
        assert (await client.get("/requests")).status_code == 503
