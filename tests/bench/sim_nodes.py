"""``python -m tests.bench.sim_nodes MODEL:COUNT:TOKENS_PER_S …``: simulated nodes in one process, models loaded.

Reads the usual LLMLB settings from the environment, prints ``ready`` and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import uvloop

from llmlb.bus.connection import Bus
from llmlb.bus.settings import Settings
from tests.bench.scripted import spec
from tests.support.simulated import simulated_nodes


async def main(groups: list[str]) -> None:
    bus = Bus(Settings.load(), "bench-nodes")
    bus.open()
    await bus.wait_up()
    async with contextlib.AsyncExitStack() as stack:
        for group in groups:
            model, count, speed = group.rsplit(":", 2)
            nodes = await stack.enter_async_context(
                simulated_nodes(bus, int(count), spec(float(speed)), models=[model])
            )
            for node in nodes:
                node.pool.release(await node.pool.ready(node.catalog.resolve(model)))
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)  # to stderr: nobody reads stdout after "ready"
    uvloop.run(main(sys.argv[1:]))
