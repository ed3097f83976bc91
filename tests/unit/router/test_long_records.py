"""Long records in the database: kept whole, however little of them is looked at; and the pages they lie in."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import orjson

from llmlb.router.history_query import get
from llmlb.router.store import CACHE_BYTES, CHECKPOINT_BYTES, PAGE_BYTES, RequestStore, plain_values
from tests.support.records import NODE, put, record


def pragma(store: RequestStore, name: str) -> int:
    return int(store._db.execute(f"PRAGMA {name}").fetchone()[0])


def long_record(name: str, asked: bytes) -> bytes:
    """As a gateway writes it: the request last, as it came."""
    fields = record(request_id=name).model_dump(mode="json", exclude={"request_json", "request_body"})
    return orjson.dumps(fields)[:-1] + b',"request_json":' + asked + b"}"


def test_a_long_record_is_kept_whole(store: RequestStore, path: Path) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": 'größe "},\n' * 10_000}]}
    data = long_record("a", json.dumps(asked).encode())
    assert plain_values(data, 5.0) is not None
    put(store, data)
    whole = get(path, "a")
    assert whole is not None
    assert json.loads(whole["request_body"]) == asked
    assert whole["answer"] == "Tokyo"
    assert whole["tried"][0]["node_id"] == NODE


def test_a_long_record_whose_request_is_broken_is_shown_without_bodies(store: RequestStore, path: Path) -> None:
    put(store, long_record("a", b'{"messages":\xff%s}' % (b"x" * 5000)))
    whole = get(path, "a")
    assert whole is not None
    assert (whole["status"], whole["request_body"], whole["answer"], whole["tried"]) == ("ok", None, None, [])


def test_a_database_of_another_page_size_is_used_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; CREATE TABLE other (a)")
    for name in ("a", "b"):
        with contextlib.closing(RequestStore(path)) as store:
            put(store, record(request_id=name, answer="x" * 60_000))
            assert pragma(store, "page_size") == 4096
            assert pragma(store, "wal_autocheckpoint") * 4096 == CHECKPOINT_BYTES
    assert {get(path, name)["answer"] for name in ("a", "b")} == {"x" * 60_000}  # type: ignore[index]


def test_a_new_database_has_pages_for_long_records_and_as_large_a_log(store: RequestStore) -> None:
    assert pragma(store, "page_size") == PAGE_BYTES
    assert pragma(store, "cache_size") * -1024 == CACHE_BYTES
    assert pragma(store, "wal_autocheckpoint") * PAGE_BYTES == CHECKPOINT_BYTES


def test_the_space_of_what_is_forgotten_is_used_again(store: RequestStore, path: Path) -> None:
    def fill(first: int, at: float) -> None:
        put(store, *(record(answer="x" * 60_000) for _ in range(40)), first=first, at=at)
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    fill(1, 100.0)
    used, size = store.used_bytes(), path.stat().st_size
    for number in range(2, 6):
        assert store.prune(number * 100.0 - 50.0, 500) == 40
        assert store.used_bytes() < used / 10
        fill(number * 40, number * 100.0)
    assert store.used_bytes() <= used * 1.1
    assert path.stat().st_size <= size * 1.1
