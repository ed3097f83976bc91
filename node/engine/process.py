"""One engine worker, seen from the node agent: start it, load a model, send requests, hear of its death."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict
from typing import Any, Protocol

import orjson

from llmlb.bus import logs
from llmlb.bus.errors import EngineCrashed, EngineStalled, LlmlbError, ModelLoadFailed, from_wire
from llmlb.bus.tasks import Background
from llmlb.node.engine.channel import FrameReader, Kind, pack
from llmlb.node.engine.interface import Capabilities, LoadOptions

log = logging.getLogger("llmlb.node.engine.process")

STOP_TIMEOUT_S = 5.0
READ_BYTES = 1 << 16
ALIVE_S = 1.0
_SEQ = struct.Struct("<I")


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}; perhaps the machine ran out of memory" if name == "SIGKILL" else name


class Listener(Protocol):
    """Who is told what the worker says."""

    async def on_reply(self, handle: int, data: bytes, last: bool) -> None:
        """One reply of an inference stream, as bytes for the bus."""

    def on_loading(self, percent: int) -> None:
        """How far loading is."""

    def on_capabilities(self, capabilities: Capabilities) -> None:
        """What the loaded model can do, as far as is known now."""

    async def on_exit(self, error: LlmlbError | None) -> None:
        """The worker is gone; the error is None when it was told to go."""


class EngineProcess:
    """A worker process with one model. Use :meth:`start`, then :meth:`submit`; :meth:`stop` ends it."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._background = Background("engine")
        self._loaded: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._stalled = False
        self._heard_at = time.monotonic()
        self._open: set[int] = set()
        """Requests whose last reply is still to come."""
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.slots = 0
        self.context_length = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self, format: str, options: LoadOptions, *, timeout_s: float) -> None:
        """Start the worker and load the model.

        Raises ModelLoadFailed (also when it takes longer than ``timeout_s``), EngineCrashed (the worker died); the
        worker is then gone.
        """
        ours, theirs = socket.socketpair()
        try:
            # A session of its own: Ctrl+C in the terminal is for the agent, which ends its workers in order.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "llmlb.node.engine.worker",
                str(theirs.fileno()),
                logs.form_in_use,
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            ours.setblocking(False)
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:  # no process to be had, or cancelled: what was opened is closed, and the cause goes on
            ours.close()
            self.kill()
            raise
        finally:
            theirs.close()
        self._background.start(self._read(reader), "read")
        self._writer.write(
            pack(Kind.CONTROL, 0, orjson.dumps({"op": "load", "format": format, "options": asdict(options)}))
        )
        try:
            async with asyncio.timeout(timeout_s):
                self.slots, self.context_length = await self._loaded
        except TimeoutError:
            await self.stop()
            raise ModelLoadFailed(f"{options.model} was not loaded within {timeout_s:.0f} s") from None
        except LlmlbError:
            await self.stop()
            raise
        except asyncio.CancelledError:
            await self.stop()
            raise

    def submit(self, handle: int, next_seq: int, request: bytes) -> None:
        """Hand over a request, as InferRequest bytes. Its end always comes through the listener."""
        if not self._open:  # an idle worker says nothing
            self._heard_at = max(self._heard_at, time.monotonic() - ALIVE_S)
        self._open.add(handle)
        self._send(Kind.SUBMIT, handle, _SEQ.pack(next_seq) + request)

    @property
    def silent_s(self) -> float:
        """Seconds since the worker said anything; a busy one does each second."""
        return time.monotonic() - self._heard_at

    def kill(self) -> None:
        """It hangs: end it at once. Its requests then fail with EngineStalled."""
        self._stalled = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def cancel(self, handle: int) -> None:
        """Ask for a request to end; its last reply still comes through the listener."""
        self._send(Kind.CANCEL, handle, b"")

    def _send(self, kind: Kind, handle: int, payload: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(kind, handle, payload))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = FrameReader()
        try:
            while data := await reader.read(READ_BYTES):
                self._heard_at = time.monotonic()
                for kind, handle, payload in frames.feed(data):
                    if kind is Kind.CONTROL:
                        self._control(orjson.loads(payload))
                    else:
                        if kind is Kind.LAST:
                            self._open.discard(handle)
                        await self._listener.on_reply(handle, payload, kind is Kind.LAST)
        except OSError as error:
            log.warning("engine_channel_failed error=%r", error)
        except Exception:  # the top of a task: what it says can't be followed any longer
            log.exception("engine_channel_failed")
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
        await self._ended()

    def _control(self, message: dict[str, Any]) -> None:
        if "capabilities" in message:
            self._listener.on_capabilities(Capabilities(**message["capabilities"]))
        if self._loaded.done():
            return
        if message["op"] == "loading":
            self._listener.on_loading(int(message["percent"]))
        elif message["op"] == "loaded":
            self._loaded.set_result((int(message["slots"]), int(message["context_length"])))
        elif message["op"] == "load_failed":
            error = from_wire(str(message["reason"]), str(message["message"]))
            self._loaded.set_exception(error if isinstance(error, ModelLoadFailed) else ModelLoadFailed(str(error)))

    async def _ended(self) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        error: LlmlbError | None = None
        how = _how_it_ended(code)
        if self._stalled:
            error = EngineStalled("the engine worker made no progress and was ended")
        elif not self._stopping:
            error = EngineCrashed(f"the engine worker ended unexpectedly ({how})")
        if not self._loaded.done():
            self._loaded.set_exception(EngineCrashed(f"the engine worker died while loading the model ({how})"))
            self._loaded.exception()  # start() may have been cancelled; then nobody else reads it
        await self._listener.on_exit(error)

    async def stop(self) -> None:
        """End the worker: close its channel, then kill it after STOP_TIMEOUT_S. May be called twice."""
        self._stopping = True
        if self._writer is not None:
            self._writer.close()
        process = self._process
        if process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                log.warning("engine_killed pid=%d", process.pid)
                process.kill()
                await process.wait()
        await self._background.close()
