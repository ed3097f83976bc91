"""The worker process as the agent starts it: in a container, where the agent is process 1, and when nothing works."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from llmlb.bus.errors import EngineCrashed, EngineStalled, LlmlbError, ModelLoadFailed
from llmlb.bus.messages.infer import InferRequest, Sampling
from llmlb.node.engine import process as processes
from llmlb.node.engine.interface import Capabilities, LoadOptions
from llmlb.node.engine.process import EngineProcess
from tests.support import tiny_models

FIRST = """
import asyncio, os, sys
from llmlb.bus.errors import LlmlbError
from llmlb.node.engine.interface import LoadOptions
from llmlb.node.engine.process import EngineProcess

class Listener:
    async def on_reply(self, handle, data, last): ...
    def on_loading(self, percent): ...
    def on_capabilities(self, capabilities): ...
    async def on_exit(self, error): ...

async def main():
    process = EngineProcess(Listener())
    options = LoadOptions(model="m", path=sys.argv[1], template=None, slots=1, context_length=256, threads=1)
    await process.start("GGUF", options, timeout_s=60)
    print(os.getpid(), process.slots)
    await process.stop()

asyncio.run(main())
"""


class Listener:
    """Takes what the worker says; raises at the first reply when told so."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.replies: list[bytes] = []
        self.gone: asyncio.Future[LlmlbError | None] = asyncio.get_running_loop().create_future()

    async def on_reply(self, handle: int, data: bytes, last: bool) -> None:
        if self.error is not None:
            raise self.error
        self.replies.append(data)

    def on_loading(self, percent: int) -> None: ...
    def on_capabilities(self, capabilities: Capabilities) -> None: ...

    async def on_exit(self, error: LlmlbError | None) -> None:
        self.gone.set_result(error)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_models.write_text_model(path)
    return path


def options(model: Path) -> LoadOptions:
    return LoadOptions(model="m", path=str(model), template=None, slots=1, context_length=256, threads=1)


def test_an_agent_that_is_process_1_can_load(model: Path) -> None:
    unshare = shutil.which("unshare")
    here = [unshare, "-pf", "--mount-proc"] if unshare else []
    if not here or subprocess.run([*here, "true"], capture_output=True, check=False).returncode:
        here = []  # not allowed here: the agent is some other process, which has to work as well
    done = subprocess.run(
        [*here, sys.executable, "-c", FIRST, str(model)], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1" if here else done.stdout.split()[0], "1"]


def test_a_worker_whose_agent_is_gone_ends_at_once() -> None:
    """It was started by somebody else than it was told: the agent died in between."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        command = [sys.executable, "-m", "llmlb.node.engine.worker", str(fd), "text", str(os.getppid())]
        done = subprocess.run(command, pass_fds=[fd], timeout=60, check=False, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b""


async def test_a_reply_that_nobody_can_take_ends_the_worker_and_is_heard_of(model: Path) -> None:
    listener = Listener(KeyError("a reply for nobody"))
    process = EngineProcess(listener)
    async with asyncio.timeout(90):
        await process.start("GGUF", options(model), timeout_s=60)
        request = InferRequest(
            request_id="r", model="m", kind="completion", prompt="a", sampling=Sampling(max_tokens=2)
        )
        process.submit(1, 0, request.model_dump_json().encode())
        assert isinstance(await listener.gone, EngineCrashed)
        await process.stop()


async def test_a_request_that_is_none_ends_alone(model: Path) -> None:
    listener = Listener()
    process = EngineProcess(listener)
    async with asyncio.timeout(90):
        await process.start("GGUF", options(model), timeout_s=60)
        process.submit(1, 0, b'{"request_id": "r", "kind": "song"}')
        whole = InferRequest(request_id="s", model="m", kind="completion", prompt="a", sampling=Sampling(max_tokens=2))
        process.submit(2, 0, whole.model_dump_json().encode())
        while not any(b"llmlb.infer.end" in reply for reply in listener.replies):
            await asyncio.sleep(0.01)
        await process.stop()
    failed = orjson.loads(listener.replies[0])
    assert (failed["request_id"], failed["error"]["reason"]) == ("r", "invalid_request")


async def test_a_process_that_cannot_be_had_leaves_nothing_open(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    pairs = []
    make = processes.socket.socketpair

    def socketpair() -> object:
        pairs.append(make())
        return pairs[-1]

    monkeypatch.setattr(processes.asyncio, "create_subprocess_exec", none)
    monkeypatch.setattr(processes.socket, "socketpair", socketpair)
    with pytest.raises(BlockingIOError):
        await EngineProcess(Listener()).start("GGUF", options(model), timeout_s=5)
    assert [one.fileno() for one in pairs[0]] == [-1, -1]


async def test_what_is_no_model_is_a_load_that_failed(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadFailed):
        await EngineProcess(Listener()).start("GGUF", options(tmp_path / "no.gguf"), timeout_s=60)


async def test_a_worker_that_hangs_is_not_woken_by_further_requests(model: Path) -> None:
    """Each request that came began the wait for a sign of life anew: with one now and then it hung for ever."""
    listener = Listener()
    process = EngineProcess(listener)
    async with asyncio.timeout(90):
        await process.start("GGUF", options(model), timeout_s=60)
        request = InferRequest(
            request_id="r", model="m", kind="completion", prompt="a", sampling=Sampling(max_tokens=2)
        )
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        handle = 0
        while process.silent_s < 2 * processes.ALIVE_S + 1:
            handle += 1
            process.submit(handle, 0, request.model_dump_json().encode())
            await asyncio.sleep(0.1)
        process.kill()
        assert isinstance(await listener.gone, EngineStalled)
        await process.stop()
