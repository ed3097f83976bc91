"""The worker process: one engine, one model, one socket to the agent. ``python -m llmlb.node.engine.worker FD``.

The main thread steps the engine; one thread reads the socket. The worker ends when the agent closes the socket or
dies: it never outlives it. A crash here takes only the requests of this model.
"""

from __future__ import annotations

import base64
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
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
from llmlb.node.engine.interface import Engine, Handle, LoadOptions, Piece

log = logging.getLogger("llmlb.node.engine.worker")

Command = tuple[Kind, int, bytes]
_SEQ = struct.Struct("<I")


class SocketSink:
    """Turns what the engine made into numbered replies, and sends those of one step in one write."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._streams: dict[Handle, tuple[str, int]] = {}
        self._out: list[bytes] = []

    def open(self, handle: Handle, request_id: str, next_seq: int) -> None:
        self._streams[handle] = (request_id, next_seq)

    def _next(self, handle: Handle) -> tuple[str, int]:
        request_id, seq = self._streams[handle]
        self._streams[handle] = (request_id, seq + 1)
        return request_id, seq

    def progress(self, handle: Handle, phase: Literal["queued", "prefill"], done: int, total: int) -> None:
        request_id, seq = self._next(handle)
        message = Progress(request_id=request_id, seq=seq, phase=phase, done=done, total=total)
        self._out.append(pack(Kind.CHUNK, handle, codec.encode(message)))

    def delta(self, handle: Handle, piece: Piece) -> None:
        request_id, seq = self._next(handle)
        message = Delta(
            request_id=request_id,
            seq=seq,
            text=piece.text,
            token_ids=piece.token_ids,
            reasoning=piece.reasoning,
            tool_calls=piece.tool_calls,
            logprobs=piece.logprobs,
        )
        self._out.append(pack(Kind.CHUNK, handle, codec.encode(message)))

    def embedded(self, handle: Handle, index: int, vector: bytes) -> None:
        request_id, seq = self._next(handle)
        message = Embedded(request_id=request_id, seq=seq, index=index, vector=base64.b64encode(vector).decode())
        self._out.append(pack(Kind.CHUNK, handle, codec.encode(message)))

    def end(self, handle: Handle, reason: FinishReason, usage: Usage, timings: Timings) -> None:
        request_id, seq = self._streams.pop(handle)
        message = End(request_id=request_id, seq=seq, finish_reason=reason, usage=usage, timings=timings)
        self._out.append(pack(Kind.LAST, handle, codec.encode(message)))

    def failed(self, handle: Handle, error: LlmlbError) -> None:
        request_id, seq = self._streams.pop(handle)
        message = Failed(request_id=request_id, seq=seq, error=WireError.of(error))
        self._out.append(pack(Kind.LAST, handle, codec.encode(message)))

    def control(self, **fields: object) -> None:
        self._out.append(pack(Kind.CONTROL, 0, orjson.dumps(fields)))

    def flush(self) -> None:
        """Send. Raises OSError when the agent is gone."""
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._sock.sendall(data)


def _read(sock: socket.socket, commands: queue.SimpleQueue[Command | None]) -> None:
    """The reading thread: frames into the queue, None at the end."""
    reader = FrameReader()
    try:
        while data := sock.recv(1 << 16):
            for frame in reader.feed(data):
                commands.put(frame)
    except OSError:
        pass
    commands.put(None)


def make_engine(format: str, options: LoadOptions) -> Engine:
    """The engine for a model format. Raises ModelLoadFailed."""
    if format == "GGUF":
        from llmlb.node.engine.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(options)
    raise ModelLoadFailed(f"{options.model} is in {format} format, for which this version has no engine")


def _apply(engine: Engine, sink: SocketSink, command: Command) -> None:
    kind, handle, payload = command
    if kind is Kind.SUBMIT:
        (next_seq,) = _SEQ.unpack_from(payload)
        request = codec.decode_as(InferRequest, payload[_SEQ.size :])
        sink.open(handle, request.request_id, next_seq)
        try:
            engine.submit(handle, request)
        except LlmlbError as error:
            sink.failed(handle, error)
    elif kind is Kind.CANCEL and engine.cancel(handle):
        sink.failed(handle, Cancelled("the request was cancelled"))


def _serve(engine: Engine, sink: SocketSink, commands: queue.SimpleQueue[Command | None]) -> None:
    """Step the engine and take commands between steps, until the agent goes."""
    busy = False
    while True:
        try:
            # Idle: sleep until a command comes. Busy: take what is there, never wait.
            while (command := commands.get(block=not busy)) is not None:
                _apply(engine, sink, command)
                busy = True
            return
        except queue.Empty:
            pass
        busy = engine.step(sink)
        sink.flush()


def main() -> int:
    """Entry point. Returns 0 when the agent closed the channel, 1 when the model could not be loaded."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent()
    if os.getppid() == 1:
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure(debug=False)
    commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sock, commands), name="channel", daemon=True).start()
    sink = SocketSink(sock)
    first = commands.get()
    if first is None:
        return 0
    order = orjson.loads(first[2])
    try:
        engine = make_engine(order["format"], LoadOptions(**order["options"]))
    except LlmlbError as error:
        sink.control(op="load_failed", **WireError.of(error).model_dump())
        sink.flush()
        return 1
    sink.control(op="loaded", slots=engine.slots, context_length=engine.context_length)
    try:
        sink.flush()
        _serve(engine, sink, commands)
    except OSError:
        log.warning("agent_gone")
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
