"""One simulated node as a process of its own: ``python -m tests.support.sim_node --node-id … --model simulated/…``.

It reads the usual LLMLB settings from the environment, waits for the bus without an end, loads its models and prints
one line, ``ready <node id>``. SIGTERM: drain (LLMLB_DRAIN_TIMEOUT), goodbye, end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import uuid

import uvloop

from llmlb.bus import logs
from llmlb.bus.connection import Bus
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.settings import Settings
from llmlb.node.engine.simulated import Fault, SimulatedSpec
from tests.support.simulated import SimulatedNode


def parse_fault(text: str) -> Fault:
    """``kind:after_tokens:times``, such as ``hang:5:1``; times 0: for ever."""
    kind, after, times = text.split(":")
    return Fault(kind, after_tokens=int(after), times=int(times) or None)  # type: ignore[arg-type]


def skew(node: SimulatedNode, seconds: float) -> None:
    """From now on the heartbeats of this node carry a clock that is wrong by ``seconds``."""
    honest = node.agent.heart.message

    def message(*, leaving: bool = False) -> Heartbeat:
        beat = honest(leaving=leaving)
        return beat.model_copy(update={"sent_at": beat.sent_at + seconds})

    node.agent.heart.message = message  # type: ignore[method-assign]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--node-id", default=uuid.uuid4().hex)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--tokens-per-s", type=float, default=40.0)
    parser.add_argument("--first-token-delay-s", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--fault", action="append", type=parse_fault, default=[])
    parser.add_argument("--clock-skew-s", type=float, default=0.0)
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--lazy", action="store_true", help="load a model when it is asked for")
    return parser.parse_args()


async def main(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = Settings.load()
    bus = Bus(settings, f"sim-node-{args.node_id[:12]}")
    bus.open()
    up = asyncio.ensure_future(bus.wait_up())
    await asyncio.wait([up, asyncio.ensure_future(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        # The length of an answer is decided by the request's max_tokens.
        spec = SimulatedSpec(
            tokens_per_s=args.tokens_per_s,
            first_token_delay_s=args.first_token_delay_s,
            slots=args.slots,
            context_length=1_000_000,
            answer_tokens=900_000,
            faults=tuple(args.fault),
            load_s=args.load_s,
        )
        node = SimulatedNode(bus, spec, models=args.model, node_id=args.node_id)
        if args.clock_skew_s:
            skew(node, args.clock_skew_s)
        await node.start()
        for model in () if args.lazy else args.model:
            node.pool.release(await node.pool.ready(node.catalog.resolve(model)))
        print(f"ready {args.node_id}", flush=True)
        await stop.wait()
        with contextlib.suppress(asyncio.CancelledError):
            await node.stop(settings.drain_timeout_s)
    await bus.close()


if __name__ == "__main__":
    logs.configure(debug=False)
    uvloop.run(main(arguments()))  # as the real node does
    sys.exit(0)
