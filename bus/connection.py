"""One connection of one process to the bus, and the one place that maps nats-py's errors.

Data plane (chunks, heartbeats): nats-py callbacks, never ``async for`` (measured: 100,000 messages a second against
10,000 with typed handlers). Control plane (rpc): FastStream handlers on :attr:`Bus.control`, over the same connection;
the AsyncAPI document is generated from them.

A bus that goes away is not an error of this module: the connection comes back by itself, for ever, and in the
meantime :meth:`Bus.publish` and :meth:`Bus.call` raise BusDown at once instead of piling messages up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
import orjson
from faststream import BaseMiddleware
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import ValidationError

from llmlb.bus import codec, publishing
from llmlb.bus.errors import (
    BadMessage,
    BusDown,
    BusError,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    LlmlbError,
    MessageTooLarge,
    NodeLost,
)
from llmlb.bus.fast_parser import Straight, StraightQueue
from llmlb.bus.lasting_client import LastingClient
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.errors import RpcFailed, WireError
from llmlb.bus.server import BusKeeper
from llmlb.bus.settings import Settings
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.bus.connection")

RECONNECT_WAIT_S = 0.25
PING_INTERVAL_S = 5
CONNECT_TIMEOUT_S = 5
PENDING_MESSAGES = 65536
"""Messages a subscription may hold before nats-py drops; a dropped chunk shows as a gap in its stream's numbering."""
DRAIN_S = 5

M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

# Every exception class of nats-py, by what it means here; the most derived class wins. tests/unit/test_nats_errors.py
# walks the library and fails on a class that falls through to the last line.
_MAP: list[tuple[type[BaseException], type[LlmlbError], str]] = [
    (nats.errors.NoRespondersError, NodeLost, "nobody answers on the bus"),
    (nats.errors.MaxPayloadError, MessageTooLarge, "the message is larger than the bus takes"),
    (nats.errors.AuthorizationError, ConfigError, "the bus refuses these credentials"),
    (nats.errors.InvalidUserCredentialsError, ConfigError, "the bus refuses these credentials"),
    (nats.errors.JsonParseError, BusDown, "the bus does not speak NATS"),
    (nats.js.errors.KeyWrongLastSequenceError, Conflict, "somebody else wrote it first"),
    (nats.js.errors.NoStreamResponseError, BusDown, "JetStream does not answer"),
    (nats.js.errors.ServiceUnavailableError, BusDown, "JetStream does not answer"),
    (nats.js.errors.Error, BusError, "JetStream refused"),
    (nats.errors.FlushTimeoutError, BusDown, "the bus does not take messages"),
    (nats.errors.DrainTimeoutError, BusDown, "the bus did not drain in time"),
    (nats.errors.TimeoutError, DeadlineExceeded, "no answer from the bus in time"),
    (nats.errors.ConnectionClosedError, BusDown, "the connection to the bus is closed"),
    (nats.errors.ConnectionDrainingError, BusDown, "the connection to the bus is closing"),
    (nats.errors.ConnectionReconnectingError, BusDown, "the bus is away"),
    (nats.errors.StaleConnectionError, BusDown, "the bus is away"),
    (nats.errors.OutboundBufferLimitError, BusDown, "the bus is away"),
    (nats.errors.NoServersError, BusDown, "no bus answers"),
    (nats.errors.SecureConnRequiredError, ConfigError, "the bus asks for TLS"),
    (nats.errors.SecureConnWantedError, ConfigError, "the bus has no TLS"),
    (nats.errors.SecureConnFailedError, ConfigError, "TLS to the bus failed"),
    (nats.errors.Error, BusError, "the bus refused"),
    (TimeoutError, DeadlineExceeded, "no answer from the bus in time"),
    (OSError, BusDown, "the bus is away"),
]


def map_nats_error(error: BaseException) -> LlmlbError:
    """The LlmlbError that stands for an exception of nats-py (or of the socket below it)."""
    for cls in type(error).__mro__:
        for foreign, ours, text in _MAP:
            if cls is foreign:
                return ours(text, detail=f"{type(error).__name__}: {error}")
    return BusError("the bus failed", detail=f"{type(error).__name__}: {error}")


class _SharedBroker(NatsBroker):
    """FastStream's broker on a connection that somebody else owns."""

    def __init__(self, client: Client, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shared_client = client

    async def _connect(self) -> Client:
        self.config.connect(self._shared_client)
        return self._shared_client


class _AnswerBadRequests(BaseMiddleware[Any, Any]):
    """A request that does not validate is answered, so that its sender does not wait for a timeout."""

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        try:
            return await call_next(msg)
        except (ValidationError, orjson.JSONDecodeError, ValueError) as error:
            log.warning("bad_rpc_request error=%s", type(error).__name__)
            return RpcFailed(error=WireError.of(BadMessage("the request is not a message of this operation")))


class Bus:
    """The connection. Make it, register rpc handlers, :meth:`open` it, subscribe, :meth:`close` it.

    ``name`` is shown in the NATS server's monitoring and in logs.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.client = LastingClient()
        self._parser = self.client.parser
        self.control: NatsBroker = _SharedBroker(
            self.client, logger=None, middlewares=[_AnswerBadRequests], graceful_timeout=DRAIN_S
        )
        self.reconnects = 0
        """How often the connection came back."""
        self.slow_consumers = 0
        """Messages that subscriptions dropped because their callbacks did not keep up."""
        self.operations: list[tuple[str, type[Message], type[Message]]] = []
        """(subject, request, answer) of each rpc handler, for the documentation."""
        self._background = Background(f"bus.{name}")
        self._keeper = BusKeeper(settings) if settings.embedded_bus and settings.bus_is_loopback else None
        self._up = asyncio.Event()
        self._last_problem = ""
        self._closing = False
        self._connecting = False
        """True once nats-py has begun: before that its close() fails."""
        self._on_up: list[Callable[[], Awaitable[None]]] = []
        self.on_lost: Callable[[LlmlbError], None] = lambda _: None
        """Called when the connection is closed for good: the process has to end, so that it is started anew."""

    @property
    def connected(self) -> bool:
        """True while messages can be sent."""
        return self._up.is_set() and self.client.is_connected

    @property
    def owns_server(self) -> bool:
        """True while this process runs the embedded server."""
        return self._keeper is not None and self._keeper.owns_server

    def on_up(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call this after the first connection and after each reconnection. It may raise LlmlbError; that is logged."""
        self._on_up.append(callback)

    def hold(self) -> None:
        """Stop watching over the embedded bus: no restart, no takeover. What runs goes on until :meth:`close`."""
        if self._keeper is not None:
            self._keeper.hold()

    def open(self) -> None:
        """Begin to connect, in the background, without end. See :meth:`wait_up`."""
        if self._keeper is not None:
            self._background.start(self._keeper.run(lambda: self.connected), "keeper")
        self._background.start(self._connect(), "connect")

    async def wait_up(self) -> None:
        """Return when connected; waits without a limit (bound it with asyncio.timeout)."""
        await self._up.wait()

    async def _connect(self) -> None:
        log.info("bus_connecting url=%s", self.settings.bus_url_shown)
        self._connecting = True
        await self.client.connect(
            servers=self.settings.bus_url.split(","),
            name=self.name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # a float works, and is meant
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            drain_timeout=DRAIN_S,
            flush_timeout=10,
            skip_subject_validation=True,  # two regular expressions a message; bus/subjects.py lets nothing bad through
            error_cb=self._error,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
        )
        await self.control.connect()
        await self.control.start()
        await self._is_up("bus_connected")

    async def _is_up(self, event: str) -> None:
        log.info("%s url=%s name=%s", event, self.settings.bus_url_shown, self.name)
        self._up.set()
        if self._keeper is not None:
            self._background.start(self._keeper.remember_store(self.client), "store")
        for callback in self._on_up:
            try:
                await callback()
            except LlmlbError as error:
                log.warning("bus_callback_failed error=%s detail=%s", error.message, error.detail)

    async def _reconnected(self) -> None:
        self.reconnects += 1
        # A task of its own: a callback that waits for the bus must not block nats-py's reconnection.
        self._background.start(self._is_up("bus_reconnected"), "reconnected")

    async def _disconnected(self) -> None:
        if self._up.is_set() and not self._closing:
            log.warning("bus_disconnected url=%s", self.settings.bus_url_shown)
        self._up.clear()
        if self._keeper is not None:
            self._keeper.look()

    async def _closed(self) -> None:
        self._up.clear()
        if not self._closing:  # nothing is known that leads here, and nothing leads back
            log.critical("bus_connection_closed error=%s", self.client.last_error)
            self.on_lost(BusDown("the connection to the bus is closed", detail=repr(self.client.last_error)))

    async def _error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            self.slow_consumers += 1
            log.warning("slow_consumer subject=%s", error.subject)
        elif self._up.is_set():
            log.debug("bus_error error=%r", error)
        elif str(error) != self._last_problem and not isinstance(error, ConnectionRefusedError):
            # Refused is what "not there yet" looks like; anything else (credentials, TLS, DNS) somebody has to mend.
            self._last_problem = str(error)
            log.warning("bus_connect_failed url=%s error=%r", self.settings.bus_url_shown, error)

    async def publish(self, subject: str, message: Message, *, reply: str = "") -> None:
        """Send a message. Raises BusDown when there is no connection, MessageTooLarge."""
        await self.publish_bytes(subject, codec.encode(message), reply=reply)

    async def publish_bytes(self, subject: str, data: bytes, *, reply: str = "") -> None:
        """Send bytes that :mod:`llmlb.bus.codec` made elsewhere. Raises as :meth:`publish`."""
        if not self.connected:
            raise BusDown("the bus is away")
        try:
            await publishing.publish(self.client, subject, data, reply)
        except (nats.errors.Error, OSError) as error:
            raise map_nats_error(error) from error

    def publish_now(self, subject: str, *data: bytes | memoryview, reply: str = "") -> bool:
        """As :meth:`publish_bytes`, in pieces, where nothing has to be waited for. False: nothing was sent."""
        return self._up.is_set() and publishing.publish_now(self.client, subject, data, reply)

    async def publish_stored(
        self, subject: str, message: Message, *, timeout_s: float = 5.0, once: str | None = None
    ) -> None:
        """Send a message into its stream and wait until it is stored. Raises BusError, DeadlineExceeded.

        ``once``: of messages with the same text here, sent within two minutes by anybody, the first is stored.
        """
        headers = None if once is None else {"Nats-Msg-Id": once}
        await self.publish_bytes_stored(subject, codec.encode(message), timeout_s=timeout_s, headers=headers)

    async def publish_bytes_stored(
        self, subject: str, data: bytes, *, timeout_s: float = 5.0, headers: dict[str, str] | None = None
    ) -> None:
        """As :meth:`publish_stored`, for bytes that :mod:`llmlb.bus.codec` made elsewhere."""
        if not self.connected:
            raise BusDown("the bus is away")
        try:
            await self.client.jetstream().publish(subject, data, timeout=timeout_s, headers=headers)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise map_nats_error(error) from error

    async def call(self, subject: str, request: Message, answer: type[R], *, timeout_s: float = 5.0) -> R:
        """One rpc: send, wait for the answer.

        Raises what the handler raised; NodeLost when nobody listens; DeadlineExceeded; BusDown; BadMessage.
        """
        if not self.connected:
            raise BusDown("the bus is away")
        try:
            msg = await self.client.request(subject, codec.encode(request), timeout=timeout_s)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise map_nats_error(error) from error
        got = codec.decode(msg.data)
        if isinstance(got, RpcFailed):
            raise got.error.exception()
        if not isinstance(got, answer):
            raise BadMessage(f"the answer is not a {answer.__name__}")
        return got

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, pending_messages: int = PENDING_MESSAGES
    ) -> Subscription:
        """Call ``callback`` with each message of a subject; survives reconnections. Raises BusDown.

        The callback runs alone for this subscription, in order, and must not block; what it raises is logged. When
        more than ``pending_messages`` wait for it, further ones are dropped.
        """
        try:
            return await self.client.subscribe(subject, cb=_guarded(callback), pending_msgs_limit=pending_messages)
        except (nats.errors.Error, OSError) as error:
            raise map_nats_error(error) from error

    async def subscribe_straight(self, subject: str, callback: Straight) -> Subscription:
        """As :meth:`subscribe`, for a callback that never waits: it runs inside the connection's own reading.

        Saves a queue and a change of tasks a message, which is most of what a chunk costs (nats-py has no such way:
        its parser knows of these subscriptions, and its queue is replaced by one that is never filled). What the
        callback raises is logged. Raises BusDown.
        """
        subscription = await self.subscribe(subject, _unused, pending_messages=1)
        subscription._pending_queue = StraightQueue(subscription, callback)
        self._parser.straight[str(subscription._id).encode()] = callback
        return subscription

    def handle(
        self, subject: str, request: type[Q], answer: type[R], handler: Callable[[Q], Awaitable[R]], *, queue: str = ""
    ) -> None:
        """Register an rpc handler; before :meth:`open`. What it raises goes back to the caller.

        Anything but an LlmlbError is logged and goes back as ``internal_error``, without its text.
        """

        async def endpoint(message):  # type: ignore[no-untyped-def]  # annotated below, for FastStream
            try:
                return await handler(message)
            except LlmlbError as error:
                return RpcFailed(error=WireError.of(error))
            except Exception as error:  # the top of a task: FastStream would say nothing, and the caller would wait
                log.exception("rpc_handler_failed subject=%s", subject)
                return RpcFailed(error=WireError.of(error))

        self.operations.append((subject, request, answer))
        endpoint.__name__ = handler.__name__
        endpoint.__doc__ = request.__doc__
        endpoint.__annotations__ = {"message": request, "return": answer | RpcFailed}
        self.control.subscriber(subject, queue=queue, title=subject, description=request.__doc__)(endpoint)

    async def close(self) -> None:
        """Send what is pending, end the connection, stop the embedded server if it is ours. Never raises."""
        self._closing = True
        self._up.clear()
        if self.client.is_connected:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(DRAIN_S + 1):
                    await self.client.drain()
        await self._background.close()
        if self._connecting and not self.client.is_closed:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._close_client()
        if self._keeper is not None:
            await self._keeper.stop()

    async def _close_client(self) -> None:
        """nats-py cancels its reader, and with it, while it reconnects, the one who waits for the socket to close."""
        try:
            await self.client.close()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise


async def _unused(_: Msg) -> None:
    """Never called: the messages of the subscription go another way."""


def _guarded(callback: Callable[[Msg], Awaitable[None]]) -> Callable[[Msg], Awaitable[None]]:
    said = False

    async def guarded(msg: Msg) -> None:
        nonlocal said
        try:
            await callback(msg)
        except BadMessage as error:
            # A peer of another version may send these each second: one line is enough.
            log.log(logging.DEBUG if said else logging.WARNING, "bad_message subject=%s error=%s", msg.subject, error)
            said = True
        except LlmlbError as error:
            log.warning("message_dropped subject=%s error=%s detail=%s", msg.subject, error.message, error.detail)
        except Exception:  # the top of a task: one bad message must not end the subscription
            log.exception("message_handler_failed subject=%s", msg.subject)

    return guarded
