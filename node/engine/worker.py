"""The worker process: one engine, one model, one socket to the agent.

``python -m llmlb.node.engine.worker FD LOGS AGENT``: the socket, the form of log lines, the pid of the agent. The main
thread steps the engine; one thread reads the socket. The worker ends when the agent closes the socket or dies: it
never outlives it. A crash here takes only the requests of this model.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

import orjson

from llmlb.bus import codec, logs
from llmlb.bus.children import die_with_parent
from llmlb.bus.errors import Cancelled, LlmlbError, ModelLoadFailed
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.infer import (
    Delta,
    Embedded,
    End,
    Failed,
    FinishReason,
    InferRequest,
    Progress,
    Timings,
    Usage,
)
from llmlb.node.engine.channel import FrameReader, Kind, pack
from llmlb.node.engine.defaults import with_defaults
from llmlb.node.engine.interface import Defaults, Engine, Handle, LoadOptions, Piece, load_options
from llmlb.node.engine.refusals import id_of, refusal, written

log = logging.getLogger("llmlb.node.engine.worker")

ALIVE_S = 1.0
"""A busy worker says this often that it still goes on; the agent ends one that says nothing for the stall limit."""
LOADING_S = 0.2

Command = tuple[Kind, int, bytes]
_SEQ = struct.Struct("<I")
_DELTA = Delta.model_fields["type"].default


def delta_bytes(request_id: str, seq: int, piece: Piece) -> bytes:
    """A :class:`llmlb.bus.messages.infer.Delta` as bytes; what is at its default there is left out.

    For the time between two decode calls, when a core or more has nothing to do: a message class costs 20 µs a token,
    this 2. Raises BadMessage, MessageTooLarge.
    """
    fields: dict[str, object] = {
        "type": _DELTA,
        "sent_at": time.time(),
        "request_id": request_id,
        "seq": seq,
        "text": piece.text,
        "token_ids": piece.token_ids,
    }
    if piece.reasoning:
        fields["reasoning"] = piece.reasoning
    if piece.tool_calls:
        fields["tool_calls"] = piece.tool_calls
    if piece.logprobs:
        fields["logprobs"] = piece.logprobs
    return codec.encode_plain(fields)


class SocketSink:
    """Turns what the engine made into numbered replies, and sends those of one step in one write."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._streams: dict[Handle, tuple[str, int]] = {}
        self._out: list[bytes] = []
        self.broken: list[Handle] = []
        """Requests that failed here because what they made can't be sent; the engine still has them."""

    def is_open(self, handle: Handle) -> bool:
        return handle in self._streams

    def open(self, handle: Handle, request_id: str, next_seq: int) -> None:
        self._streams[handle] = (request_id, next_seq)

    def _next(self, handle: Handle) -> tuple[str, int]:
        request_id, seq = self._streams[handle]
        self._streams[handle] = (request_id, seq + 1)
        return request_id, seq

    def progress(self, handle: Handle, phase: Literal["queued", "prefill"], done: int, total: int) -> None:
        if handle not in self._streams:
            return  # broken in this step
        request_id, seq = self._next(handle)
        message = Progress(request_id=request_id, seq=seq, phase=phase, done=done, total=total)
        self._out.append(pack(Kind.CHUNK, handle, codec.encode(message)))

    def delta(self, handle: Handle, piece: Piece) -> None:
        if handle not in self._streams:
            return  # broken in this step
        request_id, seq = self._next(handle)
        try:
            data = delta_bytes(request_id, seq, piece)
        except LlmlbError as error:  # too large, or no text
            self._streams[handle] = (request_id, seq)
            self.broken.append(handle)
            self.failed(handle, refusal(error))
            return
        self._out.append(pack(Kind.CHUNK, handle, data))

    def embedded(self, handle: Handle, index: int, vector: bytes) -> None:
        request_id, seq = self._next(handle)
        message = Embedded(request_id=request_id, seq=seq, index=index, vector=base64.b64encode(vector).decode())
        self._out.append(pack(Kind.CHUNK, handle, codec.encode(message)))

    def end(
        self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings, stop_text: str | None = None
    ) -> None:
        if handle not in self._streams:
            return  # broken in this step
        request_id, seq = self._streams.pop(handle)
        message = End(
            request_id=request_id, seq=seq, finish_reason=reason, usage=usage, timings=timings, stop_text=stop_text
        )
        self._out.append(pack(Kind.LAST, handle, codec.encode(message)))

    def failed(self, handle: Handle, error: LlmlbError) -> None:
        if handle not in self._streams:
            return  # broken in this step
        request_id, seq = self._streams.pop(handle)
        message = Failed(request_id=request_id, seq=seq, error=written(error))
        self._out.append(pack(Kind.LAST, handle, codec.encode(message)))

    def control(self, **fields: object) -> None:
        self._out.append(pack(Kind.CONTROL, 0, orjson.dumps(fields)))

    def alive(self) -> None:
        """Within a long call: the worker is alive, and what was said goes out now."""
        self.control(op="alive")
        with contextlib.suppress(OSError):  # nobody can be told here; the next flush says so
            self.flush()

    def flush(self) -> None:
        """Send. Raises OSError when the agent is gone."""
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._sock.sendall(data)


class Inbox:
    """What the agent says: read by a thread of its own, taken by the main thread between steps."""

    def __init__(self, sock: socket.socket) -> None:
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.engine: Engine | None = None
        """Told of what comes at once, so that it can end a long call."""
        self._sock = sock
        threading.Thread(target=self._read, name="channel", daemon=True).start()

    def _read(self) -> None:
        """Frames into the queue, None at the end."""
        reader = FrameReader()
        try:
            while data := self._sock.recv(1 << 16):
                for frame in reader.feed(data):
                    self.commands.put(frame)
                    if frame[0] in (Kind.SUBMIT, Kind.CANCEL) and self.engine is not None:
                        self.engine.interrupt(frame[1])
        except OSError:
            pass
        self.commands.put(None)
        if self.engine is not None:
            self.engine.interrupt(-1)


def make_engine(format: str, options: LoadOptions, progress: Callable[[float], None]) -> Engine:
    """The engine for a model format. ``progress`` gets 0 to 1 while it loads. Raises ModelLoadFailed."""
    if format == "GGUF":
        from llmlb.node.engine.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(options, progress)
    if format == "Safetensors":
        from llmlb.node.engine.vllm import VllmEngine

        return VllmEngine(options)
    raise ModelLoadFailed(f"{options.model} is in {format} format, for which this version has no engine")


def _apply(engine: Engine, defaults: Defaults, sink: SocketSink, command: Command) -> None:
    kind, handle, payload = command
    if kind is Kind.SUBMIT:
        (next_seq,) = _SEQ.unpack_from(payload)
        data = payload[_SEQ.size :]
        try:
            request = codec.decode_as(InferRequest, data)
            sink.open(handle, request.request_id, next_seq)
            engine.submit(handle, with_defaults(request, defaults))
        except Exception as error:  # noqa: BLE001  # the top of a request: it fails alone
            engine.cancel(handle)
            if not sink.is_open(handle):
                sink.open(handle, id_of(data), next_seq)
            sink.failed(handle, refusal(error))
    elif kind is Kind.CANCEL and engine.cancel(handle):
        sink.failed(handle, Cancelled("the request was cancelled"))


def _serve(engine: Engine, defaults: Defaults, sink: SocketSink, commands: queue.SimpleQueue[Command | None]) -> None:
    """Step the engine and take commands between steps, until the agent goes."""
    busy = True  # once round first: an engine may have something to find out before there is work
    said_at, said = time.monotonic(), engine.capabilities
    while True:
        try:
            # Idle: sleep until a command comes. Busy: take what is there, never wait.
            while (command := commands.get(block=not busy)) is not None:
                _apply(engine, defaults, sink, command)
                busy = True
            return
        except queue.Empty:
            pass
        busy = engine.step(sink)
        while sink.broken:
            engine.cancel(sink.broken.pop())
        now = time.monotonic()
        if engine.capabilities != said:
            said = engine.capabilities
            sink.control(op="capabilities", capabilities=asdict(said))
        if now - said_at >= ALIVE_S and engine.going_on():
            said_at = now
            sink.control(op="alive")
        sink.flush()


def _loading(sink: SocketSink) -> Callable[[float], None]:
    """Tells the agent how far loading is, a few times a second."""
    said_at = 0.0

    def progress(share: float) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= LOADING_S:
            said_at = time.monotonic()
            sink.control(op="loading", percent=round(100 * share))
            sink.flush()

    return progress


def main() -> int:
    """Entry point. Returns 0 when the agent closed the channel, 1 when the model could not be loaded."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent()
    if len(sys.argv) > 3 and os.getppid() != int(sys.argv[3]):
        return 1  # the agent died before it could be noticed; in a container it may be process 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure(debug=False, form=sys.argv[2] if len(sys.argv) > 2 else "text")
    inbox = Inbox(sock)
    sink = SocketSink(sock)
    first = inbox.commands.get()
    if first is None:
        return 0
    order = orjson.loads(first[2])
    options = load_options(order["options"])
    try:
        engine = make_engine(order["format"], options, _loading(sink))
    except LlmlbError as error:
        sink.control(op="load_failed", **WireError.of(error).model_dump())
        sink.flush()
        return 1
    # What loading made stays: the collector need not look at it again between two tokens.
    gc.collect()
    gc.freeze()
    inbox.engine = engine
    sink.control(
        op="loaded",
        slots=engine.slots,
        context_length=engine.context_length,
        capabilities=asdict(engine.capabilities),
    )
    try:
        sink.flush()
        _serve(engine, options.defaults, sink, inbox.commands)
    except OSError:
        log.warning("agent_gone")
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
