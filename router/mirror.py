"""A bucket's content in memory, kept up to date, and changed only from what is really there.

Several routers write the same keys. Every change is a read, a decision, and a write that the bus refuses when somebody
else wrote first; then it is decided anew. Changes of others are heard as they cross the bus, and confirmed by reading
the bucket, because a change crosses the bus also when the bucket refuses it.

A bucket that lost its store is filled again from memory: a key that was deleted leaves a mark, one that was lost does
not. Only what no living router remembers is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import RawStreamMsg
from nats.js.kv import KV_OP, KeyValue

from llmlb.bus.buckets import changes_of, open_bucket
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BusDown, BusError, Conflict, DeadlineExceeded, LlmlbError, NodeLost
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.router.mirror")

FIRST_READ_S = 3.0
READ_S = 10.0
RETRY_S = 2.0
RESYNC_S = 30.0
"""It is looked so often whether a change was not heard; what changed since the last look is read."""
WHOLE_S = 600.0
"""Everything is read anew so often, and after each reconnection: a bus may lose, with its disk, what it had said."""
CHANGES_MOST = 64
"""More than so many changes are not read one by one."""
AT_ONCE = 32
"""Keys read at the same time."""
EDIT_TRIES = 50
NO_STREAM, WRONG_REVISION = 10059, (10071, 10164)
"""Source: nats-server, errors.json: JSStreamNotFoundErr, JSStreamWrongLastSequence(Constant)Err."""
CONFIRM_S = (0.0, 0.02, 0.1, 0.5)
"""A change crosses the bus a little before the bucket has it: looked at so often before it counts as refused."""

Change = Callable[[bytes | None], bytes | None]
_ERRORS = (nats.errors.Error, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class _Entry:
    """``value`` None: deleted, or never there (then ``revision`` is 0)."""

    value: bytes | None
    revision: int


def _entry(msg: RawStreamMsg) -> _Entry:
    deleted = bool(msg.headers and msg.headers.get(KV_OP) in ("DEL", "PURGE"))
    return _Entry(None if deleted else msg.data or b"", msg.seq or 0)


class Mirror:
    """:meth:`start` once the bus is up. ``on_change(key, value)`` is called with each new value, None for deleted."""

    def __init__(
        self, bus: Bus, bucket: str, on_change: Callable[[str, bytes | None], None], *, keys: str = ">"
    ) -> None:
        """``keys``: the keys of interest, as in a subject."""
        self._bus, self._bucket, self._on_change, self._keys = bus, bucket, on_change, keys
        self._prefix = f"$KV.{bucket}."
        self._entries: dict[str, _Entry] = {}
        self._changed: dict[str, bytes | None] = {}
        """Keys whose change was heard, and the newest value heard; looked up soon. As many as there are keys."""
        self._made = ""
        """When the bucket was made: tells it from one that was made anew."""
        self._seen: int | None = None
        """Number of the last change of the bucket that is known of here; None: everything has to be read."""
        self._whole_at = -math.inf
        self._ups = 0
        """How often the connection came back."""
        self._stale = True
        self.loaded = False
        """True once everything was read."""
        self._poke = asyncio.Event()
        self._loading = asyncio.Lock()
        self._kv: KeyValue | None = None
        self._subscription: Subscription | None = None
        self._said = ""
        self._closing = False
        self._background = Background(f"mirror.{bucket}")

    async def start(self) -> None:
        """Read everything if that is possible within 3 s; from then on follow, whatever happens to the bus."""
        try:
            async with asyncio.timeout(FIRST_READ_S):
                await self._load()
        except (LlmlbError, TimeoutError) as error:
            self._say(error)
        self._bus.on_up(self._back_again)
        self._background.forever(self._run, "run")

    async def close(self) -> None:
        # A cancellation can get lost in nats-py (see Background.close): the loop looks for itself.
        self._closing = True
        self._poke.set()
        await self._background.close()

    def values(self) -> dict[str, bytes]:
        """What is in the bucket, as far as is known."""
        return {key: entry.value for key, entry in self._entries.items() if entry.value is not None}

    def get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    # Following

    async def _back_again(self) -> None:
        self._stale, self._seen = True, None
        self._ups += 1
        self._poke.set()

    async def _on_message(self, msg: Msg) -> None:
        deleted = bool(msg.headers and msg.headers.get(KV_OP) in ("DEL", "PURGE"))
        self._changed[msg.subject.removeprefix(self._prefix)] = None if deleted else msg.data
        self._poke.set()

    async def _run(self) -> None:
        while not self._closing:
            pause = RESYNC_S
            self._poke.clear()
            try:
                await self._bus.wait_up()
                if self._stale:
                    await self._load()
                await self._confirm()
                self._said = ""
            except LlmlbError as error:
                self._say(error)
                self._stale, pause = True, RETRY_S
            try:
                async with asyncio.timeout(pause):
                    await self._poke.wait()
            except TimeoutError:
                self._stale = True

    def _say(self, error: BaseException) -> None:
        """One line a change of state."""
        text = error.message if isinstance(error, LlmlbError) else "no answer in time"
        if text != self._said:
            self._said = text
            log.warning("bucket_not_read bucket=%s error=%r", self._bucket, text)

    async def _confirm(self) -> None:
        """Read the keys whose changes were heard. A change that the bucket refused is found out by its absence."""
        changed, self._changed = self._changed, {}
        for wait_s in CONFIRM_S:
            if not changed:
                return
            await asyncio.sleep(wait_s)
            for key, heard in list(changed.items()):
                entry = self._entries.get(key)
                if entry is None or entry.value != heard:
                    entry = await self._read(key)
                    self._set(key, entry)
                if entry.value == heard or self._changed.get(key, heard) != heard:
                    del changed[key]

    async def _load(self) -> None:
        """Make the bucket if it is missing, and read all of it. Raises LlmlbError."""
        async with self._loading:
            ups, before = self._ups, self._seen
            self._seen = None  # until this has worked
            try:
                if self._subscription is None:
                    self._subscription = await self._bus.subscribe(
                        changes_of(self._bucket, self._keys), self._on_message
                    )
                found = None if before is None else await self._read_changes(before)
                if found is None:
                    found = await self._read_all()
            except _ERRORS as error:
                raise map_nats_error(error) from error
            if ups == self._ups:
                self._seen = found
            self._stale, self.loaded = self._seen is None, True

    async def _read_changes(self, seen: int) -> int | None:
        """Read what changed after ``seen``: mostly one question, and nothing. None: everything has to be read."""
        if time.monotonic() - self._whole_at >= WHOLE_S:
            return None
        js, stream = self._bus.client.jetstream(), f"KV_{self._bucket}"
        async with asyncio.timeout(READ_S):
            try:
                info = await js.stream_info(stream)
                last = info.state.last_seq
                if str(info.created) != self._made or not seen <= last <= seen + CHANGES_MOST:
                    return None
                while seen < last:
                    msg = await js.get_msg(
                        stream, seq=seen + 1, subject=changes_of(self._bucket, self._keys), next=True
                    )
                    self._set((msg.subject or "").removeprefix(self._prefix), _entry(msg))
                    seen = msg.seq or last
            except nats.js.errors.NotFoundError as error:
                if error.err_code == NO_STREAM:
                    return None
                seen = last  # the rest was of other keys
        return seen

    async def _read_all(self) -> int:
        """Everything; the number of the last change that it has for sure."""
        client, replicas = self._bus.client, self._bus.settings.bus_replicas
        async with asyncio.timeout(READ_S):
            self._kv = await open_bucket(client, self._bucket, replicas=replicas)
            info = await client.jetstream().stream_info(
                f"KV_{self._bucket}", subjects_filter=changes_of(self._bucket, self._keys)
            )
            keys = [subject.removeprefix(self._prefix) for subject in info.state.subjects or {}]
            if self._made and str(info.created) != self._made:
                log.warning("bucket_was_made_anew bucket=%s keys=%d", self._bucket, len(self._entries))
                self._entries = {key: _Entry(entry.value, 0) for key, entry in self._entries.items()}
            self._made = str(info.created)
            for start in range(0, len(keys), AT_ONCE):
                batch = keys[start : start + AT_ONCE]
                for key, entry in zip(batch, await asyncio.gather(*map(self._read, batch)), strict=True):
                    self._set(key, entry)
        for key in set(self._entries) - set(keys):
            await self._restore(key)
        # Not all gateways at the same time, though a bus that came back is a beginning that all have in common.
        self._whole_at = time.monotonic() - random.uniform(0, WHOLE_S / 3)
        return info.state.last_seq

    async def _restore(self, key: str) -> None:
        """Put back what the bucket lost, unless somebody wrote that key meanwhile."""
        entry = self._entries[key]
        if entry.value is None:
            del self._entries[key]
            return
        with contextlib.suppress(Conflict):
            await self._write(key, entry.value, 0)

    def _set(self, key: str, entry: _Entry) -> None:
        old = self._entries.get(key)
        if old is not None and entry.revision < old.revision:
            return  # read before it was written
        self._entries[key] = entry
        if (None if old is None else old.value) != entry.value:
            self._on_change(key, entry.value)

    # Reading and writing

    async def _read(self, key: str) -> _Entry:
        """Raises LlmlbError."""
        js = self._bus.client.jetstream()
        try:
            # Not a direct get: those may be answered by a replica that is behind.
            msg = await js.get_last_msg(f"KV_{self._bucket}", self._prefix + key)
        except nats.js.errors.NotFoundError as error:
            if error.err_code == NO_STREAM:
                raise BusDown("there is no such bucket", detail=self._bucket) from error
            return _Entry(None, 0)
        except _ERRORS as error:
            raise map_nats_error(error) from error
        return _entry(msg)

    async def _write(self, key: str, value: bytes | None, revision: int) -> None:
        """Raises Conflict when the key is not at ``revision`` any more, LlmlbError."""
        if self._kv is None:
            raise BusDown("the bucket is not open")
        try:
            if value is None:
                await self._kv.delete(key, last=revision)
                entry = _Entry(None, revision + 1)  # at least: the bus does not say
            else:
                entry = _Entry(value, await self._kv.update(key, value, last=revision))
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise map_nats_error(error) from error  # a Conflict
        except nats.js.errors.APIError as error:
            if error.err_code in WRONG_REVISION:  # which delete() does not translate
                raise Conflict("somebody else wrote it first") from error
            raise map_nats_error(error) from error
        except _ERRORS as error:
            raise map_nats_error(error) from error
        self._set(key, entry)

    async def edit(self, key: str, change: Change) -> bytes | None:
        """Replace a value by what ``change`` makes of it, and return that; None stands for a key that is not there.

        ``change`` may be called several times, and may raise any LlmlbError, which ends it at once. Raises BusDown,
        DeadlineExceeded, Conflict (when others write the same key without end).
        """
        reopened = False
        if not self._bus.connected:
            raise BusDown("the bus is away")
        for attempt in range(EDIT_TRIES):
            try:
                entry = await self._read(key)
                self._set(key, entry)
                value = _made(change, entry.value)
                if value != entry.value:
                    await self._write(key, value, entry.revision)
                return value
            except _Refused as refused:
                raise refused.error from None
            except Conflict:
                await asyncio.sleep(random.uniform(0, 0.002) * (attempt + 1))
            except DeadlineExceeded:
                raise
            except LlmlbError as error:
                # The bucket may have gone with the bus's store: made anew, once.
                if reopened or not self._bus.connected or not self._is_bus(error):
                    raise
                reopened, self._seen = True, None
                await self._load()
        raise Conflict(f"the key {key} is written by others all the time")

    @staticmethod
    def _is_bus(error: LlmlbError) -> bool:
        return isinstance(error, (BusDown, NodeLost)) or type(error) is BusError


class _Refused(Exception):
    """The change itself failed: not to be taken for a failure of the bus."""

    def __init__(self, error: LlmlbError) -> None:
        super().__init__()
        self.error = error


def _made(change: Change, old: bytes | None) -> bytes | None:
    """Raises _Refused."""
    try:
        return change(old)
    except LlmlbError as error:
        raise _Refused(error) from error
