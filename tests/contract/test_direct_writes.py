"""What is published goes to the socket in the next step of the event loop, within nats-py's limits: on both loops."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from llmlb.bus.connection import Bus
from tests.support.loops import Run, connected
from tests.support.natsd import NatsServer


def test_all_that_is_published_in_one_step_is_written_once(run: Run, nats_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        heard, writes = [], []
        everything = asyncio.Event()
        async with connected(nats_url, tmp_path) as bus:
            await bus.subscribe_straight(
                "direct.once", lambda *_: (heard.append(1), len(heard) == 60 and everything.set())
            )
            await bus.client.flush()
            real = bus.client._direct.write_now
            bus.client._direct.write_now = lambda parts: (writes.append(len(parts)), real(parts))[1]  # type: ignore[method-assign]
            for _ in range(3):
                for _ in range(20):
                    assert bus.publish_now("direct.once", b"x")
                assert bus.client.pending_data_size
                await asyncio.sleep(0)
                assert not bus.client.pending_data_size
            await everything.wait()
            assert writes == [20, 20, 20]

    run(main())


def test_what_a_bus_that_hangs_does_not_take_waits_within_the_limit_and_is_sent_when_it_goes_on(
    run: Run, server: NatsServer, tmp_path: Path
) -> None:
    async def main() -> None:
        heard: list[int] = []
        async with connected(server.url, tmp_path) as bus:
            await bus.subscribe_straight("direct.hang", lambda _, data, headers: heard.append(int(data[:9])))
            await bus.client.flush()
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGSTOP)
            sent = await until_full(bus, "direct.hang")
            transport = bus.client._direct._io_writer.transport  # type: ignore[union-attr]
            assert 0 < bus.client.pending_data_size <= bus.client._max_pending_size
            assert 0 < transport.get_write_buffer_size() <= bus.client._max_pending_size + (1 << 20)
            os.kill(server.process.pid, signal.SIGCONT)
            while len(heard) < sent:
                await asyncio.sleep(0.01)
            assert heard == list(range(sent))

    run(main())


def test_what_a_bus_that_hangs_and_dies_did_not_take_is_sent_to_the_next(
    run: Run, server: NatsServer, tmp_path: Path
) -> None:
    async def main() -> None:
        heard: list[int] = []
        async with connected(server.url, tmp_path) as bus:
            await bus.subscribe_straight("direct.die", lambda _, data, headers: heard.append(int(data[:9])))
            await bus.client.flush()
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGSTOP)
            sent = await until_full(bus, "direct.die")
            pending = bus.client.pending_data_size
            server.kill()
            while bus.connected:
                await asyncio.sleep(0.01)
            heard.clear()  # what it passed on before it hung
            server.start()
            await bus.wait_up()
            while not heard or heard[-1] != sent - 1:
                await asyncio.sleep(0.01)
            assert heard == list(range(heard[0], sent)), "what waited, once, in its order"
            assert len(heard) * 10_000 >= pending - 20_000

    run(main())


def test_a_flush_returns_when_the_bus_knows_of_all_that_came_before_it(run: Run, nats_url: str, tmp_path: Path) -> None:
    async def main() -> None:
        heard: list[bytes] = []
        async with connected(nats_url, tmp_path) as sender, connected(nats_url, tmp_path) as receiver:
            for number in range(100):
                await receiver.subscribe_straight(f"direct.flush.{number}", lambda _, data, headers: heard.append(data))
                await receiver.client.flush()
                assert sender.publish_now(f"direct.flush.{number}", b"x" * number * 1000)
                await sender.client.flush()
                await receiver.client.flush()
                assert len(heard) == number + 1

    run(main())


async def until_full(bus: Bus, subject: str) -> int:
    """Publish until no more is taken: so many messages."""
    number = refused = 0
    while refused < 20:
        if bus.publish_now(subject, b"%09d" % number + b"x" * 9_991):
            number += 1
            refused = 0
        else:
            refused += 1
        await asyncio.sleep(0)
    return number
