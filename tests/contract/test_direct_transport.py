"""The short ways between a socket of the bus and its callbacks: on both event loops, plain and with TLS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from llmlb.bus.connection import Bus
from tests.support.loops import Run, connected
from tests.support.natsd import NatsServer

PEM = Path(__file__).parents[1] / "support" / "loopback.pem"
SIZES = (0, 1, 200, 5_000, 70_000, 300_000)


@pytest.fixture
def tls_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that speaks TLS only, with a certificate that this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    started = NatsServer(tmp_path / "tls", more=f'tls: {{ cert_file: "{PEM}", key_file: "{PEM}" }}\n').start()
    yield f"tls://127.0.0.1:{started.port}"
    started.stop()


def count_reads(bus: Bus) -> list[int]:
    """The bytes of each read that went to the parser at once; the connection has to be made after this, or anew."""
    taken: list[int] = []
    real = bus.client.parser.take

    def take(data: bytes) -> bytes:
        rest = real(data)
        taken.append(len(data) - len(rest))
        return rest

    bus.client._direct._take = take
    return taken


async def send_mixed(sender: Bus, receiver: Bus, subject: str, rounds: int) -> None:
    """Each to a straight subscription and to a usual one, in turn; checks what arrives, and that nothing overtakes."""
    everything = asyncio.Event()
    straight: list[bytes] = []
    usual: list[bytes] = []
    sent: list[bytes] = []

    def looked() -> None:
        if len(straight) == len(usual) == rounds:
            everything.set()

    def on_straight(_: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        straight.append(data)
        assert subscription._received == len(straight) - 1, "the usual ones before it, and no other, have come"
        looked()

    async def on_usual(msg: Msg) -> None:
        usual.append(msg.data)
        looked()

    subscription = await receiver.subscribe(f"{subject}.usual", on_usual)
    await receiver.subscribe_straight(f"{subject}.straight", on_straight)
    await receiver.client.flush()
    for number in range(rounds):
        data = b"%03d" % number * (SIZES[number % len(SIZES)] // 3)
        sent.append(data)
        for kind in ("straight", "usual"):
            if not sender.publish_now(f"{subject}.{kind}", data):
                await sender.publish_bytes(f"{subject}.{kind}", data)
        if number % 3 == 0:
            await asyncio.sleep(0)
    await everything.wait()
    assert straight == sent
    assert usual == sent


def test_messages_of_both_kinds_and_every_size_keep_their_order(
    run: Run, nats_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with connected(nats_url, tmp_path) as sender, connected(nats_url, tmp_path) as receiver:
            await send_mixed(sender, receiver, "direct.order", 90)
            await send_mixed(sender, sender, "direct.self", 30)

    run(main())
    assert not caplog.records


def test_the_same_holds_with_tls(run: Run, tls_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with connected(tls_url, tmp_path) as bus:
            assert bus.client._direct._io_writer is not None
            assert bus.client._direct._io_writer.get_extra_info("cipher") is not None
            await send_mixed(bus, bus, "direct.tls", 60)
            taken = count_reads(bus)
            await bus.client.force_reconnect()
            while not bus.reconnects or not bus.connected:
                await asyncio.sleep(0.01)
            await send_mixed(bus, bus, "direct.again", 60)
            taken.clear()
            heard = asyncio.Event()
            await bus.subscribe_straight("direct.single", lambda *_: heard.set())
            assert bus.publish_now("direct.single", b"x")
            await heard.wait()
            assert sum(taken) > 0

    run(main())
    assert not [record for record in caplog.records if "bus_disconnected" not in record.message]


def test_after_a_reconnection_the_short_ways_are_there_again(run: Run, server: NatsServer, tmp_path: Path) -> None:
    async def main() -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        async with connected(server.url, tmp_path) as bus:
            await bus.subscribe_straight("direct.back", lambda _, data, headers: heard.put_nowait(data))
            taken = count_reads(bus)
            for round_ in range(3):
                server.kill()
                while bus.connected:
                    await asyncio.sleep(0.01)
                assert not bus.publish_now("direct.back", b"x")
                server.start()
                await bus.wait_up()
                taken.clear()
                assert bus.publish_now("direct.back", b"%d" % round_)
                assert await heard.get() == b"%d" % round_
                assert sum(taken) > 0

    run(main())


def test_a_callback_that_raises_ends_neither_the_reading_nor_the_connection(
    run: Run, nats_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        def fail(subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
            heard.put_nowait(data)
            raise asyncio.CancelledError if data == b"1" else KeyError(subject)

        async with connected(nats_url, tmp_path) as bus:
            await bus.subscribe_straight("direct.fail", fail)
            for number in range(4):
                assert bus.publish_now("direct.fail", b"%d" % number)
                assert await heard.get() == b"%d" % number
            assert not bus.reconnects

    run(main())
    assert caplog.text.count("callback_failed subject=direct.fail") == 4


def test_a_bug_in_the_reading_itself_costs_the_connection_which_comes_back_at_once(
    run: Run, nats_url: str, tmp_path: Path
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        heard = asyncio.Event()
        async with connected(nats_url, tmp_path) as bus:
            await bus.subscribe_straight("direct.bug", lambda *_: heard.set())
            protocol = bus.client._direct._protocol
            assert protocol is not None
            protocol._take = lambda data: data[1 / 0 :]  # type: ignore[misc]
            assert bus.publish_now("direct.bug", b"x")
            async with asyncio.timeout(5):
                while not bus.reconnects or not bus.connected:
                    await asyncio.sleep(0.01)
            assert bus.publish_now("direct.bug", b"x")
            await heard.wait()

    run(main())


def test_a_slow_consumer_loses_its_own_messages_and_nobody_elses(run: Run, nats_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        go_on, straight, usual = asyncio.Event(), [], []
        everything = asyncio.Event()

        async def slow(msg: Msg) -> None:
            await go_on.wait()
            usual.append(msg.data)

        def at_once(_: str, data: bytes, headers: Mapping[str, str] | None) -> None:
            straight.append(data)
            if len(straight) == 500:
                everything.set()

        async with connected(nats_url, tmp_path) as bus:
            await bus.subscribe("direct.slow", slow, pending_messages=10)
            await bus.subscribe_straight("direct.slow", at_once)
            for number in range(500):
                await bus.publish_bytes("direct.slow", b"%d" % number)
            await everything.wait()
            await bus.client.flush()
            assert straight == [b"%d" % number for number in range(500)]
            go_on.set()
        assert bus.slow_consumers >= 400
        assert len(usual) + bus.slow_consumers == 500
        assert usual == sorted(usual, key=int)

    run(main())


def test_a_huge_message_in_many_reads_arrives_whole(run: Run, nats_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        async with connected(nats_url, tmp_path) as bus:
            await bus.subscribe_straight("direct.huge", lambda _, data, headers: heard.put_nowait(data))
            huge = os.urandom(1000) * 7000
            for data in (b"before", huge, b"after"):
                await bus.publish_bytes("direct.huge", data)
            assert [await heard.get() for _ in range(3)] == [b"before", huge, b"after"]

    run(main())


@pytest.mark.parametrize("drains", [True, False])
def test_what_was_published_before_the_connection_is_closed_is_sent(
    run: Run, nats_url: str, tmp_path: Path, drains: bool
) -> None:
    async def main() -> None:
        heard: list[bytes] = []
        everything = asyncio.Event()

        def take(_: str, data: bytes, headers: Mapping[str, str] | None) -> None:
            heard.append(data)
            if len(heard) == 1000:
                everything.set()

        async with connected(nats_url, tmp_path) as receiver, connected(nats_url, tmp_path) as sender:
            await receiver.subscribe_straight("direct.close", take)
            await receiver.client.flush()
            for number in range(1000):
                assert sender.publish_now("direct.close", b"%d" % number + b"x" * 1000)
            await (sender.close() if drains else sender.client.close())
            await everything.wait()
            assert [int(data.rstrip(b"x")) for data in heard] == list(range(1000))

    run(main())


def test_nothing_is_heard_once_the_connection_is_closed(
    run: Run, nats_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        heard = 0

        def take(*_: object) -> None:
            nonlocal heard
            heard += 1

        async with connected(nats_url, tmp_path) as sender, connected(nats_url, tmp_path) as receiver:
            await receiver.subscribe_straight("direct.flood", take)
            await receiver.client.flush()
            sending = asyncio.ensure_future(flood(sender, "direct.flood"))
            while heard < 100:
                await asyncio.sleep(0)
            receiver._closing = True
            await receiver.client.close()
            at_the_end = heard
            sending.cancel()
            await asyncio.wait([sending])
            await sender.client.flush()
            assert heard == at_the_end

    run(main())
    assert not caplog.records


async def flood(bus: Bus, subject: str) -> None:
    while True:
        for _ in range(50):
            await bus.publish_bytes(subject, b"x" * 300)
        await asyncio.sleep(0)
