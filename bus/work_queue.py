"""Work that stays on the bus until it is done: one consumer of a work-queue stream.

An item comes again until its handler has returned and the ack has reached the server: after kill -9 of either side, a
connection that was cut, a server that was started again, a stream or consumer that somebody deleted. So a handler may
see an item that it finished in an earlier life, and has to be idempotent; within one life a finished item that comes
again is only acked.

Not with nats-py's pull subscription: it does not notice that a server which was started again has forgotten its
request, nor a consumer that is gone, and its ``fetch`` swallows a cancel (2.16: ``wait_for`` of Python 3.11 does when
the result is there as well).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BusDown, BusError, LlmlbError
from llmlb.bus.messages.base import Message
from llmlb.bus.streams import ensure_streams
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.bus.work_queue")

ACK_WAIT_S = 5.0
"""An item whose worker is silent for so long comes again."""
IN_PROGRESS_S = 1.5
MAX_ITEMS = 64
"""Items that are worked, or wait for their turn, at the same time. More stay on the bus until one is acked."""
FETCH_S = 10.0
RETRY_S = 1.0
REQUEST_S = 5.0
NAK_S = 5.0
DONE_KEPT = 1024

_NEXT = "$JS.API.CONSUMER.MSG.NEXT.{}.{}"
_TIME_IS_OVER = frozenset({"404", "408"})
"""Status of a request that has ended as it should. Source: NATS ADR-13, pull consumers."""

Handler = Callable[[bytes], Awaitable[None]]
Key = tuple[int, int]
"""Sequence of an item in its stream, and when it was stored, in µs: a stream that is made anew counts from 1 again."""


@dataclass(slots=True)
class _Work:
    """An item with its handler under way. ``msg`` is its newest delivery: that one is acked."""

    msg: Msg


class WorkQueue:
    """The items of one subject. :meth:`start` once the bus was opened; ``handler`` runs once for each, all at once.

    A handler that returns is done. One that raises is logged, and its item comes again after 5 s. At
    :meth:`close` handlers are cancelled and their items stay on the bus.
    """

    def __init__(self, bus: Bus, *, stream: str, subject: str, consumer: str, handler: Handler) -> None:
        self._bus, self._stream, self._subject, self._consumer = bus, stream, subject, consumer
        self._handler = handler
        self._background = Background(f"queue.{consumer}")
        self._working: dict[Key, _Work] = {}
        self._some = asyncio.Event()
        """An item is worked, or was a moment ago."""
        self._done: OrderedDict[Key, None] = OrderedDict()
        self._inbox: str | None = None
        self._subscription: Subscription | None = None
        self._look = asyncio.Event()
        """The connection is another one: what was asked for is forgotten there."""
        self._over = asyncio.Event()
        self._refused: str | None = None
        self._left = 0
        """Items that our request may still bring."""
        self._said: str | None = None
        self._inherited = True
        """What is worked, as the server knows it, was worked by an earlier process."""
        self._closed = False

    @property
    def working(self) -> int:
        """Items whose handlers are under way."""
        return len(self._working)

    def start(self) -> None:
        """Take items as soon as the bus is up, and again whenever it is back."""
        self._bus.on_up(self._back_again)
        self._background.forever(self._keep, "in_progress")
        self._background.forever(self._take, "take")

    async def put(self, message: Message, *, timeout_s: float = REQUEST_S) -> None:
        """Store an item. The stream is made when it is missing. Raises BusError, DeadlineExceeded."""
        try:
            await self._bus.publish_stored(self._subject, message, timeout_s=timeout_s)
        except BusDown:
            if not self._bus.connected:
                raise
            await self._ensure_stream()
            await self._bus.publish_stored(self._subject, message, timeout_s=timeout_s)

    async def wait_all_taken(self) -> None:
        """Return once no item is on the bus that is not worked here, those of an earlier life included."""
        while True:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await self._bus.wait_up()
                info = await self._jetstream().consumer_info(self._stream, self._consumer)
                if not info.num_pending and (info.num_ack_pending or 0) <= len(self._working):
                    return
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Take nothing more, cancel the handlers and wait for them. Their items are not acked. Never raises."""
        self._closed = True
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):  # the connection may be gone, and it too
                await self._subscription.unsubscribe()
            self._subscription = None
        await self._background.close()

    # Taking

    async def _back_again(self) -> None:
        self._look.set()
        self._over.set()

    def _jetstream(self) -> JetStreamContext:
        return self._bus.client.jetstream(timeout=REQUEST_S)

    async def _take(self) -> None:
        while not self._closed:
            await self._bus.wait_up()
            try:
                if self._inbox is None:
                    inbox = self._bus.client.new_inbox()
                    self._subscription = await self._bus.subscribe(inbox, self._on_message)
                    self._inbox = inbox
                await self._ensure()
                await self._ask()
            except (nats.errors.Error, OSError, TimeoutError, LlmlbError) as error:
                self._say(error)
                await asyncio.sleep(RETRY_S)

    def _say(self, error: BaseException) -> None:
        """One line for each change of what is wrong."""
        mapped = error if isinstance(error, LlmlbError) else map_nats_error(error)
        if mapped.detail != self._said and self._bus.connected:
            self._said = mapped.detail
            log.warning("queue_not_read consumer=%s error=%r detail=%s", self._consumer, mapped.message, mapped.detail)

    async def _ensure_stream(self) -> None:
        try:
            await ensure_streams(self._bus.client, replicas=self._bus.settings.bus_replicas)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise map_nats_error(error) from error

    async def _ensure(self) -> None:
        """The stream and the consumer are there."""
        self._look.clear()
        await self._ensure_stream()
        if self._inherited:
            await self._take_over()
            self._inherited = False
        config = ConsumerConfig(
            durable_name=self._consumer,
            filter_subject=self._subject,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=MAX_ITEMS,
        )
        await self._jetstream().add_consumer(self._stream, config)

    async def _take_over(self) -> None:
        """What an earlier process had in work comes at once: a new consumer gives it out again, the old one after its
        ack wait. Nobody else works it: a consumer belongs to one process at a time."""
        with contextlib.suppress(NotFoundError):
            info = await self._jetstream().consumer_info(self._stream, self._consumer)
            if info.num_ack_pending:
                await self._jetstream().delete_consumer(self._stream, self._consumer)

    async def _ask(self) -> None:
        """Have items delivered, until the connection was renewed. Raises BusError when the consumer is gone."""
        assert self._inbox is not None
        request = json.dumps({"batch": MAX_ITEMS, "expires": int(FETCH_S * 1e9)}).encode()
        while not self._closed and not self._look.is_set():
            self._refused, self._left = None, MAX_ITEMS
            self._over.clear()
            await self._bus.publish_bytes(_NEXT.format(self._stream, self._consumer), request, reply=self._inbox)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FETCH_S + RETRY_S):
                    await self._over.wait()
            if self._refused is not None:
                raise BusError("the work queue is not there", detail=self._refused)

    async def _on_message(self, msg: Msg) -> None:
        """An item, or the end of our last request: its time is over, or the consumer is gone."""
        status = (msg.headers or {}).get("Status")
        if status is None:
            self._said = None
            self._begin(msg)
            self._left -= 1
            if self._left == 0:
                self._over.set()
            return
        if status not in _TIME_IS_OVER:
            self._refused = f"{status} {(msg.headers or {}).get('Description', '')}"
        self._over.set()

    def _begin(self, msg: Msg) -> None:
        meta = msg.metadata
        key = (meta.sequence.stream, int(meta.timestamp.timestamp() * 1e6))
        if (work := self._working.get(key)) is not None:
            work.msg = msg
        elif key in self._done:
            self._background.start(self._ack(msg), "ack")
        else:
            self._working[key] = _Work(msg)
            self._some.set()
            self._background.start(self._work(key), f"work.{key[0]}")

    # Working

    async def _work(self, key: Key) -> None:
        work = self._working[key]
        try:
            await self._handler(work.msg.data)
            self._done[key] = None
            if len(self._done) > DONE_KEPT:
                self._done.popitem(last=False)
            await self._ack(work.msg)
        except Exception:  # the top of a task: the item comes again
            log.exception("queue_item_failed consumer=%s", self._consumer)
            with contextlib.suppress(nats.errors.Error, OSError):
                await work.msg.nak(delay=NAK_S)
        finally:
            del self._working[key]

    async def _ack(self, msg: Msg) -> None:
        """Say that an item is done. When that does not arrive it comes again, and then this does too."""
        if not self._bus.connected:
            return
        try:
            await msg.ack_sync(timeout=REQUEST_S)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            log.info("queue_ack_lost consumer=%s error=%r", self._consumer, error)

    async def _keep(self) -> None:
        """Tell the server, as long as an item is worked, that it is."""
        while True:
            await self._some.wait()
            await asyncio.sleep(IN_PROGRESS_S)
            if not self._working:
                self._some.clear()
            for work in list(self._working.values()):
                if self._bus.connected:
                    with contextlib.suppress(nats.errors.Error, OSError):
                        await work.msg.in_progress()
