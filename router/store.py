"""The request history in ``LLMLB_HOME/router.db``: SQLite, written in batches together with the place in the stream.

A batch and the number of its last message are one transaction, so that each record is there once whatever dies when.
Two routers of one home write the same file: a record is known by its request id and its time, and the second writer's
copy is ignored. The request id alone won't do: a client may choose it, and choose it twice.

One object is one connection, for one thread. Everything raises ``sqlite3.Error``; :func:`damaged` tells what can only
be mended by :func:`set_aside`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import sqlite_utils

from llmlb.bus import codec
from llmlb.bus.errors import BadMessage
from llmlb.bus.messages.requests import RequestRecord
from llmlb.bus.stream_reader import StoredMessage

BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another one (a second router of this home, somebody's sqlite3 shell)."""
PAGE_BYTES = 8192
"""Of a new database; one that is there keeps its own. A record of 64 KiB costs a fifth less than in pages of 4 KiB; in
16 KiB a short one costs more, since each writes some page of the index of request ids anew."""
CHECKPOINT_BYTES = 32 * 1024 * 1024
"""That the write-ahead log may hold: an index page is written often, and so into the database less often."""
CACHE_BYTES = 8 * 1024 * 1024
"""Of pages, in place of SQLite's 2 MB: a batch of long records (4 MiB) did not fit, and pages of the indexes made way
for it that the next record needed."""
WAL_LIMIT_BYTES = 64 * 1024 * 1024

_migrations = sqlite_utils.Migrations("llmlb.history")

COLUMNS: dict[str, type] = {
    "request_id": str,
    "sent_at": float,
    "stored_at": float,
    "started_at": float,
    "gateway_id": str,
    "model": str,
    "node_id": str,
    "kind": str,
    "path": str,
    "streamed": int,
    "key": str,
    "status": str,
    "reason": str,
    "finish_reason": str,
    "attempts": int,
    "migrations": int,
    "placement": str,
    "queue_ms": float,
    "first_token_ms": float,
    "inter_token_ms": float,
    "total_ms": float,
    "prompt_tokens": int,
    "completion_tokens": int,
    "reasoning_tokens": int,
    "cached_tokens": int,
    "bytes_in": int,
    "bytes_out": int,
}
"""Of the table ``requests``, beside ``id``. ``stored_at``: Unix seconds of the bus's clock; others as in the record."""

BY_TIME = (
    *("started_at", "request_id", "model", "node_id", "status", "key", "kind", "reason"),
    *("path", "total_ms"),
)
"""The one index that lists are read from: in their order, and with every column a filter may name, so that any filter
is one pass over it. Measured with 100,000 rows: see docs/metrics.md."""


@_migrations()
def requests_table(db: sqlite_utils.Database) -> None:
    db.table("requests").create({"id": int, **COLUMNS}, pk="id")
    db.table("requests").create_index(list(BY_TIME), index_name="requests_by_time")
    db.table("requests").create_index(["request_id", "sent_at"], index_name="requests_once", unique=True)
    # The whole message, apart: it may hold 128 KiB of text, and lists never read it.
    db.table("request_details").create({"id": int, "record": bytes}, pk="id")
    db.table("history_position").create({"id": int, "stream": str, "sequence": int}, pk="id")


_TYPE = "llmlb.request.record.v1"
_REQUEST = b',"request_json":{'
LONG_BYTES = 4096
"""From here on it pays to look for the request in a record."""
_STATUSES, _KINDS = frozenset({"ok", "error", "cancelled"}), frozenset({"chat", "completion", "embedding"})
_USAGE = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens")
_NAMES = tuple(COLUMNS)
_GET_FIRST = operator.itemgetter(*_NAMES[: _NAMES.index("stored_at")])
_GET_REST = operator.itemgetter(*_NAMES[_NAMES.index("stored_at") + 1 : _NAMES.index("prompt_tokens")])
_GET_USAGE = operator.itemgetter(*_USAGE)
_INTS = slice(_NAMES.index("attempts"), _NAMES.index("migrations") + 1)
_OPTIONAL = {"key", "reason", "finish_reason", "first_token_ms", "inter_token_ms", *_USAGE}
_PLAIN: dict[type, tuple[type, ...]] = {str: (str,), float: (float, int), int: (int,)}
_ALLOWED = tuple(
    (bool,) if name == "streamed" else _PLAIN[kind] + ((type(None),) if name in _OPTIONAL else ())
    for name, kind in COLUMNS.items()
)
"""Types that a column's value may have."""
_INSERT = f"INSERT OR IGNORE INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


@dataclass(frozen=True, slots=True)
class Position:
    """How far the stream was read. ``stream`` is when it was made: another one counts from 1 again."""

    stream: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch. ``skipped``: not records that can be read."""

    rows: int
    skipped: int
    problem: str = ""


def damaged(error: sqlite3.Error) -> bool:
    """True when the file is no database, or a broken one."""
    return (error.sqlite_errorcode or 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def set_aside(path: Path) -> Path:
    """Rename a damaged database (over an earlier one); its new name. Raises OSError."""
    aside = path.with_name(path.name + ".damaged")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    return aside


class RequestStore:
    """The writer's connection. Making it makes or migrates the database."""

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        try:
            self._set_up()
            self._migrate()
            self._inode = os.stat(path).st_ino
        except BaseException:  # cleaned up after, and raised again
            self._db.close()
            raise

    def _set_up(self) -> None:
        self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        # Debian's SQLite is built to write zeros over each page that gets free, SQLite's own is not: to forget a long
        # record cost half of what it cost to write it.
        self._db.execute("PRAGMA secure_delete = FAST")
        self._db.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024}")
        size = int(self._db.execute("PRAGMA page_size").fetchone()[0])
        self._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_BYTES // size}")
        self._db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")

    def _migrate(self) -> None:
        database = sqlite_utils.Database(self._db)
        try:
            _migrations.apply(database)
        except sqlite3.OperationalError:
            # Another router of this home may just have done the same.
            if _migrations.pending(database):
                raise

    def close(self) -> None:
        self._db.close()

    @property
    def in_place(self) -> bool:
        """False when the file was deleted or replaced behind our back."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def position(self) -> Position:
        row = self._db.execute("SELECT stream, sequence FROM history_position WHERE id = 1").fetchone()
        return Position("", 0) if row is None else Position(*row)

    def beginning(self, moment: float) -> tuple[Position, list[float]]:
        """The position and :meth:`stored_since`, both as of now: another router of this home may write in between."""
        self._db.execute("BEGIN")
        try:
            return self.position(), self.stored_since(moment)
        finally:
            if self._db.in_transaction:  # an I/O error has ended it already
                self._db.execute("ROLLBACK")

    def write(self, batch: Sequence[StoredMessage], position: Position) -> Written:
        """All of a batch and the position after it, or nothing of it."""
        rows = skipped = 0
        problem = ""
        with self._transaction():
            for message in batch:
                values = plain_values(message.data, message.stored_at)
                if values is None:
                    try:
                        values = _values(codec.decode_as(RequestRecord, message.data), message.stored_at)
                    except BadMessage as error:
                        skipped, problem = skipped + 1, error.message
                        continue
                try:
                    rows += self._insert(values, message)
                except (OverflowError, ValueError) as error:  # what SQLite can't hold, such as 2**63; nothing was done
                    skipped, problem = skipped + 1, str(error)
            self._advance(position)
        return Written(rows, skipped, problem)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:  # rolled back, and raised again
            # A full disk or an I/O error has rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _insert(self, values: tuple[object, ...], message: StoredMessage) -> int:
        cursor = self._db.execute(_INSERT, values)
        if cursor.rowcount > 0:
            self._db.execute(
                "INSERT OR REPLACE INTO request_details (id, record) VALUES (?, ?)", (cursor.lastrowid, message.data)
            )
            return 1
        return 0

    def _advance(self, position: Position) -> None:
        """Never back: another router of this home may be ahead."""
        self._db.execute(
            "INSERT INTO history_position (id, stream, sequence) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "sequence = CASE WHEN stream = excluded.stream THEN max(sequence, excluded.sequence) "
            "ELSE excluded.sequence END, stream = excluded.stream",
            (position.stream, position.sequence),
        )

    def stored_since(self, moment: float) -> list[float]:
        """``stored_at`` of what came after ``moment``, newest first."""
        found: list[float] = []
        for (stored_at,) in self._db.execute("SELECT stored_at FROM requests ORDER BY id DESC"):
            if stored_at < moment:
                break
            found.append(stored_at)
        return found

    def prune(self, before: float, most: int) -> int:
        """Delete up to ``most`` of the oldest rows that were stored before ``before``; how many."""
        with self._transaction():
            old = self._db.execute(
                "SELECT id FROM (SELECT id, stored_at FROM requests ORDER BY id LIMIT ?) WHERE stored_at < ?",
                (most, before),
            ).fetchall()
            self._db.executemany("DELETE FROM request_details WHERE id = ?", old)
            self._db.executemany("DELETE FROM requests WHERE id = ?", old)
        return len(old)

    def used_bytes(self) -> int:
        """What the database holds; its file may be larger."""
        pages, free, size = (
            self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def drop_details(self, most: int) -> int:
        """Forget the bodies of up to ``most`` of the oldest rows that have them; how many."""
        with self._transaction():
            dropped = self._db.execute(
                "DELETE FROM request_details WHERE id IN (SELECT id FROM request_details ORDER BY id LIMIT ?)", (most,)
            )
        return dropped.rowcount


def plain_values(data: bytes, stored_at: float) -> tuple[object, ...] | None:
    """As :func:`_values` of a record as this version writes it. None: it is another, or none; the message class knows.

    A fifth of what the message class costs, which was the most of what a record costs here.
    """
    try:
        body = orjson.loads(_short(data))
        usage = body["usage"]
        counts = (None,) * len(_USAGE) if usage is None else _GET_USAGE(usage)
        values = (*_GET_FIRST(body), stored_at, *_GET_REST(body), *counts, body["bytes_in"], body["bytes_out"])
        good = body["type"] == _TYPE and body["started_at"] and _fits(tuple(map(type, values)))
        if not good or body["status"] not in _STATUSES or body["kind"] not in _KINDS:
            return None
        return values if min(values[_INTS]) >= 0 and (usage is None or min(counts) >= 0) else None
    except (KeyError, TypeError, orjson.JSONDecodeError):
        return None


def _short(data: bytes) -> bytes:
    """A long record without the request at its end, which no column shows: to read 64 KiB of it took 40 µs.

    Where the request is not the last field, or the rest is broken, what comes back is no record either. In JSON these
    bytes are a field's name wherever they are: a quote within a text has a backslash before it. Nobody looks whether
    the request itself is JSON; the gateway, that wrote it as it came, has. One that is not shows no bodies.
    """
    if len(data) < LONG_BYTES or not data.endswith(b"}}"):
        return data
    at = data.find(_REQUEST)
    return data if at == -1 else data[:at] + b"}"


@functools.lru_cache(maxsize=256)
def _fits(types: tuple[type, ...]) -> bool:
    """These may be the columns' values."""
    return all(one in allowed for one, allowed in zip(types, _ALLOWED, strict=True))


def _values(record: RequestRecord, stored_at: float) -> tuple[object, ...]:
    usage = record.usage
    # A gateway of an older version does not say when the request arrived.
    started_at = record.started_at or record.sent_at - record.total_ms / 1000
    return (
        record.request_id,
        record.sent_at,
        stored_at,
        started_at,
        record.gateway_id,
        record.model,
        record.node_id,
        record.kind,
        record.path,
        record.streamed,
        record.key,
        record.status,
        record.reason,
        record.finish_reason,
        record.attempts,
        record.migrations,
        record.placement,
        record.queue_ms,
        record.first_token_ms,
        record.inter_token_ms,
        record.total_ms,
        usage and usage.prompt_tokens,
        usage and usage.completion_tokens,
        usage and usage.reasoning_tokens,
        usage and usage.cached_tokens,
        record.bytes_in,
        record.bytes_out,
    )
