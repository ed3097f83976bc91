"""Questions to the request history. One connection a question: nothing to mend when the file was replaced."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmlb.router.store import BUSY_TIMEOUT_S, COLUMNS

LIMIT_DEFAULT = 50
LIMIT_MAX = 500
QUERY_TIMEOUT_S = 5.0
_STEPS = 20_000
"""Instructions of SQLite's machine between two looks at the clock, about 1 ms."""

_SHOWN = ", ".join(name for name in COLUMNS if name != "sent_at")
_ORDER = "ORDER BY started_at DESC, request_id DESC"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests, newest first. None: any. Times in Unix seconds, durations in ms."""

    model: str | None = None
    node: str | None = None
    """Node id, or the beginning of one."""
    status: str | None = None
    reason: str | None = None
    key: str | None = None
    kind: str | None = None
    path: str | None = None
    since: float | None = None
    until: float | None = None
    """Arrived at this moment or later, and before that one."""
    min_ms: float | None = None
    max_ms: float | None = None
    search: str | None = None
    """Part of the request id."""
    before: tuple[float, str] | None = None
    """``started_at`` and request id of the last one of the page before."""
    limit: int = LIMIT_DEFAULT


class QueryTimeout(Exception):
    """It took longer than QUERY_TIMEOUT_S."""


def find(path: Path, wanted: RequestFilter) -> tuple[list[dict[str, Any]], bool]:
    """The requests, without their bodies, and whether there are more. Raises sqlite3.Error, QueryTimeout."""
    where, values = _where(wanted)
    sql = (
        f"SELECT {_SHOWN} FROM requests WHERE id IN (SELECT id FROM requests INDEXED BY requests_by_time "
        f"{where} {_ORDER} LIMIT ?) {_ORDER}"
    )
    with _reading(path) as db:
        rows = db.execute(sql, (*values, wanted.limit + 1)).fetchall()
    return [_shown(row) for row in rows[: wanted.limit]], len(rows) > wanted.limit


def get(path: Path, request_id: str) -> dict[str, Any] | None:
    """The newest request of this id with bodies and attempts, or None. Raises sqlite3.Error, QueryTimeout."""
    sql = (
        f"SELECT {_SHOWN}, record FROM requests LEFT JOIN request_details USING (id) "
        "WHERE request_id = ? ORDER BY sent_at DESC LIMIT 1"
    )
    with _reading(path) as db:
        row = db.execute(sql, (request_id,)).fetchone()
    if row is None:
        return None
    summary = _shown(row)
    # The message itself has what a newer gateway wrote and this version does not know.
    details = {} if row["record"] is None else _details(row["record"])
    if (asked := details.pop("request_json", None)) is not None:
        details["request_body"] = orjson.dumps(asked).decode()
    whole = {"request_body": None, "answer": None, "tried": [], "timings": None, **details, **summary}
    return {name: value for name, value in whole.items() if name not in ("type", "sent_at")}


def _details(record: bytes) -> dict[str, Any]:
    """{} for what is no JSON: the store does not look into the request of a long record."""
    try:
        read = orjson.loads(record)
    except orjson.JSONDecodeError:
        return {}
    return read if isinstance(read, dict) else {}


def _shown(row: sqlite3.Row) -> dict[str, Any]:
    body = {name: row[name] for name in row.keys() if name != "record"}  # noqa: SIM118
    tokens = {name: body.pop(name) for name in list(body) if name.endswith("_tokens")}
    body["usage"] = None if tokens["prompt_tokens"] is None else tokens
    body["streamed"] = bool(body["streamed"])
    return body


def _where(wanted: RequestFilter) -> tuple[str, list[Any]]:
    terms: list[tuple[str, Any]] = [
        ("started_at >= ?", wanted.since),
        ("started_at < ?", wanted.until),
        ("model = ?", wanted.model),
        ("status = ?", wanted.status),
        ("reason = ?", wanted.reason),
        ("key = ?", wanted.key),
        ("kind = ?", wanted.kind),
        ("path = ?", wanted.path),
        ("total_ms >= ?", wanted.min_ms),
        ("total_ms <= ?", wanted.max_ms),
        ("instr(request_id, ?) > 0", wanted.search),
    ]
    given = [(term, value) for term, value in terms if value is not None]
    if wanted.node is not None:
        # A range, not LIKE: ids are lower-case hex digits, and g comes after f.
        given += [("node_id >= ?", wanted.node), ("node_id < ?", wanted.node + "g")]
    values = [value for _, value in given]
    clauses = [term for term, _ in given]
    if wanted.before is not None:
        clauses.append("(started_at, request_id) < (?, ?)")
        values += wanted.before
    return (f"WHERE {' AND '.join(clauses)}" if clauses else ""), values


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads, and stops when its time is over."""
    # mode=rw, not ro: a reader of a WAL database may have to make the -shm file; and never makes the database.
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)
    until = time.monotonic() + QUERY_TIMEOUT_S
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA query_only = 1")
        db.set_progress_handler(lambda: int(time.monotonic() > until), _STEPS)
        yield db
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise QueryTimeout from error
        raise
    finally:
        db.close()
