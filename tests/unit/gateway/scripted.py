"""A gateway on the loopback interface whose answers a test writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest, Progress, Usage
from llmlb.bus.messages.router import ClusterModel
from llmlb.bus.settings import Settings
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.ports import Gateway, Responses

Event = Progress | Delta | Embedded | End
Step = Event | Exception | asyncio.Event | float
"""What to yield, to raise, to wait for, or how many seconds to wait."""


class Scripted:
    """Inference, models and readiness. ``script`` says what a request is answered."""

    def __init__(self, script: Callable[[InferRequest], Sequence[Step]] = lambda request: [end()]) -> None:
        self.script = script
        self.begun: list[InferRequest] = []
        self.closed: list[InferRequest] = []
        self.strangers = 0
        """Answers closed by another task than the one that began them."""
        self.cut = 0
        """Answers that were cancelled while they closed."""
        self.sent = 0
        """Events taken by the reader, of all answers."""
        self.ready = True
        self.responses: Responses | None = None
        """Where answers of /v1/responses are stored."""

    async def stream(self, request: InferRequest, call: object = None) -> AsyncGenerator[Event, None]:
        self.begun.append(request)
        task = asyncio.current_task()
        try:
            for step in self.script(request):
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
                    self.sent += 1
        finally:
            self.strangers += asyncio.current_task() is not task
            self.closed.append(request)
            self.cut += 1
            await asyncio.sleep(0)  # the real one tells the node and the history
            self.cut -= 1

    def list_models(self) -> tuple[ClusterModel, ...]:
        return ()


def delta(text: str = "", **fields: Any) -> Delta:
    return Delta(request_id="r", seq=1, text=text, **fields)


def end(finish_reason: Any = "stop", prompt: int = 3, completion: int = 2, **usage: int) -> End:
    tokens = Usage(prompt_tokens=prompt, completion_tokens=completion, **usage)
    return End(request_id="r", seq=2, finish_reason=finish_reason, usage=tokens)


def progress() -> Progress:
    return Progress(request_id="r", seq=1, phase="queued")


@contextlib.asynccontextmanager
async def serving(home: Path, scripted: Scripted, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """A client of a gateway with these answers, and the gateway's port."""
    gateway = Gateway(
        role="router",
        settings=Settings.load({}, home=home, **settings),
        version="0",
        inference=scripted,
        models=scripted,
        readiness=scripted,
        router_ops=None,
        node_ops=None,
        node_id=None,
        responses=scripted.responses,
    )
    server = GatewayServer(build_app(gateway))
    await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
            yield client, server.port
    finally:
        await server.stop(0.1)


async def until(true: Callable[[], bool]) -> None:
    """Wait until it is so, for a second at most."""
    async with asyncio.timeout(1):
        while not true():
            await asyncio.sleep(0.005)
