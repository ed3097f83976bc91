"""The database of past requests, and the count of the last hour. No bus here: see tests/contract/test_history.py."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import InvalidRequest
from llmlb.router import history_query
from llmlb.router.gateway.requests import PARAMETERS, parse_filter
from llmlb.router.history_query import RequestFilter, find, get
from llmlb.router.hour import HourCount
from llmlb.router.store import Position, RequestStore, damaged, set_aside
from tests.support.records import NODE, put, record, stored

OTHER_NODE = "f" * 32


def ids(database: Path, **wanted: Any) -> list[str]:
    return [row["request_id"] for row in find(database, RequestFilter(**wanted))[0]]


def test_a_record_comes_back_whole_and_its_row_without_bodies(store: RequestStore, path: Path) -> None:
    one = record(request_id="a", queue_ms=3.5, streamed=True, key="k1", migrations=1)
    put(store, one)
    row = find(path, RequestFilter())[0][0]
    assert row["request_id"] == "a"
    assert row["usage"] == {"prompt_tokens": 30, "completion_tokens": 8, "reasoning_tokens": 0, "cached_tokens": 16}
    assert (row["streamed"], row["key"], row["migrations"], row["queue_ms"]) == (True, "k1", 1, 3.5)
    assert not {"request_body", "answer", "tried"} & set(row)
    whole = get(path, "a")
    assert whole is not None
    assert whole["answer"] == "Tokyo"
    assert whole["request_body"] == '{"messages": []}'
    assert whole["tried"][0]["node_id"] == NODE
    assert {name: whole[name] for name in row} == row
    assert get(path, "b") is None


def test_a_body_that_was_kept_as_json_is_shown_as_its_text(store: RequestStore, path: Path) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": 'größe "\n'}], "temperature": 0.5}
    put(store, record(request_id="a", request_body=None, request_json=asked))
    whole = get(path, "a")
    assert whole is not None
    assert json.loads(whole["request_body"]) == asked
    assert "request_json" not in whole


def test_what_a_newer_gateway_adds_is_kept(store: RequestStore, path: Path) -> None:
    put(store, record(request_id="a").model_dump_json().replace('"model":', '"weather": "fine", "model":').encode())
    whole = get(path, "a")
    assert whole is not None
    assert whole["weather"] == "fine"


def test_a_record_of_an_older_gateway_gets_the_time_it_must_have_arrived(store: RequestStore, path: Path) -> None:
    put(store, record(request_id="a", started_at=0.0, sent_at=1000.0, total_ms=2500.0, usage=None))
    row = find(path, RequestFilter())[0][0]
    assert row["started_at"] == 997.5
    assert row["usage"] is None


def test_the_position_is_part_of_the_batch(store: RequestStore, path: Path) -> None:
    assert store.position() == Position("", 0)
    store.write(stored(record(), record()), Position("s", 2))
    assert store.position() == Position("s", 2)
    broken = stored(record(request_id="lost"), first=3)
    with pytest.raises(sqlite3.Error):
        store.write(broken, Position("s", object()))  # type: ignore[arg-type]
    assert store.position() == Position("s", 2)
    assert "lost" not in ids(path)


def test_a_record_read_twice_is_there_once_and_one_id_used_twice_is_there_twice(
    store: RequestStore, path: Path
) -> None:
    one, other = record(request_id="same"), record(request_id="same")
    assert put(store, one) == 1
    assert put(store, one, other, first=2) == 1
    assert ids(path) == ["same", "same"]


def test_a_second_router_of_the_home_never_takes_the_position_back(store: RequestStore, path: Path) -> None:
    second = RequestStore(path)
    batch = stored(record(), record(), record())
    store.write(batch, Position("s", 3))
    assert second.write(batch[:2], Position("s", 2)).rows == 0
    assert second.position() == Position("s", 3)
    assert second.write([], Position("a newer stream", 1)).rows == 0
    assert store.position() == Position("a newer stream", 1)
    second.close()


def test_what_another_router_writes_while_one_opens_is_not_counted_twice(
    store: RequestStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, record(), at=100.0)
    second = RequestStore(path)
    position = store.position

    def slow() -> Position:
        found = position()
        put(second, record(), first=2, at=200.0)
        return found

    monkeypatch.setattr(store, "position", slow)
    assert store.beginning(0.0) == (Position("s", 1), [100.0])
    assert second.beginning(0.0) == (Position("s", 2), [200.0, 100.0])
    second.close()


def test_what_is_no_record_is_skipped_and_counted(store: RequestStore, path: Path) -> None:
    done = store.write(stored(b"not json", record(request_id="a"), b'{"type": "x"}'), Position("s", 3))
    assert (done.rows, done.skipped) == (1, 2)
    assert store.position().sequence == 3
    assert ids(path) == ["a"]


def test_rows_are_forgotten_in_small_steps_and_only_when_they_are_old(store: RequestStore, path: Path) -> None:
    put(store, *(record() for _ in range(25)), at=100.0)
    put(store, record(request_id="new"), first=26, at=200.0)
    assert [store.prune(150.0, 10) for _ in range(4)] == [10, 10, 5, 0]
    assert ids(path) == ["new"]
    assert get(path, "new") is not None
    assert store.position().sequence == 26


def test_the_oldest_bodies_go_first_when_there_is_too_much(store: RequestStore, path: Path) -> None:
    put(store, record(request_id="old"), record(request_id="new"))
    before = store.used_bytes()
    assert before > 0
    assert store.drop_details(1) == 1
    old, new = get(path, "old"), get(path, "new")
    assert old is not None
    assert new is not None
    assert (old["answer"], old["tried"], new["answer"]) == (None, [], "Tokyo")
    assert old["model"] == "owner/model"


def test_a_damaged_file_is_told_from_a_busy_one_and_set_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(sqlite3.Error) as caught:
        RequestStore(path)
    assert damaged(caught.value)
    aside = set_aside(path)
    assert aside.read_bytes().startswith(b"no database")
    RequestStore(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store = RequestStore(path, busy_timeout_s=0.01)
    with pytest.raises(sqlite3.OperationalError) as busy:
        put(store, record())
    assert not damaged(busy.value)
    holder.execute("ROLLBACK")
    assert put(store, record()) == 1
    store.close()
    holder.close()


def test_a_file_that_was_deleted_or_replaced_is_noticed(store: RequestStore, path: Path) -> None:
    assert store.in_place
    path.rename(path.with_name("elsewhere"))
    assert not store.in_place
    path.write_bytes(b"")
    assert not store.in_place


# Questions


@pytest.fixture
def mixed(store: RequestStore, path: Path) -> Path:
    put(
        store,
        record(request_id="a1", started_at=10.0, model="x", key="k", status="ok", total_ms=5.0),
        record(request_id="a2", started_at=20.0, model="y", status="error", reason="node_lost", total_ms=50.0),
        record(request_id="b3", started_at=30.0, model="x", kind="embedding", path="/v1/embeddings", total_ms=500.0),
        record(request_id="b4", started_at=40.0, model="x", node_id=OTHER_NODE, status="cancelled", total_ms=5000.0),
    )
    return path


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "b4 b3 a2 a1"),
        ({"model": "x"}, "b4 b3 a1"),
        ({"status": "error"}, "a2"),
        ({"reason": "node_lost"}, "a2"),
        ({"key": "k"}, "a1"),
        ({"kind": "embedding"}, "b3"),
        ({"path": "/v1/chat/completions"}, "b4 a2 a1"),
        ({"node": OTHER_NODE}, "b4"),
        ({"node": "0123"}, "b3 a2 a1"),
        ({"node": "012f"}, ""),
        ({"since": 20.0}, "b4 b3 a2"),
        ({"until": 20.0}, "a1"),
        ({"since": 20.0, "until": 40.0}, "b3 a2"),
        ({"min_ms": 50.0}, "b4 b3 a2"),
        ({"max_ms": 50.0}, "a2 a1"),
        ({"search": "3"}, "b3"),
        ({"search": "a"}, "a2 a1"),
        ({"search": "%"}, ""),
        ({"model": "x", "status": "ok", "max_ms": 100.0}, "a1"),
        ({"before": (30.0, "b3")}, "a2 a1"),
    ],
)
def test_each_filter_finds_what_it_names(mixed: Path, wanted: dict[str, Any], expected: str) -> None:
    assert ids(mixed, **wanted) == expected.split()


def test_pages_meet_without_a_gap_even_when_times_are_equal(store: RequestStore, path: Path) -> None:
    put(store, *(record(request_id=f"r{n:02}", started_at=1.0 + n // 4) for n in range(23)))
    seen: list[str] = []
    before = None
    while True:
        rows, more = find(path, RequestFilter(limit=5, before=before))
        seen += [row["request_id"] for row in rows]
        if not more:
            break
        before = (rows[-1]["started_at"], rows[-1]["request_id"])
    assert seen == [f"r{n:02}" for n in range(22, -1, -1)]


def test_any_filter_is_one_pass_over_one_index(mixed: Path) -> None:
    everything = RequestFilter(
        model="x", node="0", status="ok", key="k", kind="chat", since=1.0, until=9.0, min_ms=1.0, search="r", path="/"
    )
    where, values = history_query._where(everything)
    db = sqlite3.connect(mixed)
    sql = f"SELECT id FROM requests INDEXED BY requests_by_time {where} {history_query._ORDER} LIMIT 5"
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    db.close()
    assert len(plan) == 1
    assert "USING COVERING INDEX requests_by_time (started_at>? AND started_at<?)" in plan[0]


def test_a_question_that_takes_too_long_ends(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_query, "QUERY_TIMEOUT_S", -1.0)
    monkeypatch.setattr(history_query, "_STEPS", 1)
    with pytest.raises(history_query.QueryTimeout):
        find(mixed, RequestFilter())


def test_a_question_never_makes_a_database(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        find(path, RequestFilter())
    assert not path.exists()


# The query string


def test_a_query_string_becomes_a_filter() -> None:
    given = {"model": "m", "node": "AB", "since": "2026-01-31T00:00:00Z", "until": "5.5", "before": "1.5~a~b"}
    wanted = parse_filter({**{name: [value] for name, value in given.items()}, "limit": ["500"]})
    assert wanted == RequestFilter(model="m", node="ab", since=1769817600.0, until=5.5, before=(1.5, "a~b"), limit=500)
    assert parse_filter({}).limit == 50


def test_a_time_zone_may_be_written_with_a_plus() -> None:
    moments = [parse_filter({"since": [text]}).since for text in ("2026-01-31T09:00:00+09:00", "2026-01-31T00:00:00")]
    assert moments == [1769817600.0, 1769817600.0]
    assert parse_filter({"since": ["2026-01-31T09:00:00 09:00"]}).since == 1769817600.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "501", "-1", "x", "", "1e2", "٣")),
        *(("since", value) for value in ("yesterday", "nan", "inf", "", "2026-99-99")),
        *(("min_ms", value) for value in ("-1", "fast", "nan")),
        *(("before", value) for value in ("x", "1.0", "~", "x~y", "nan~y")),
        *(("node", value) for value in ("", "xyz", "0" * 33)),
        ("status", "good"),
        ("kind", "poem"),
        ("model", ""),
        ("model", "m" * 1025),
        ("bodies", "1"),
    ],
)
def test_a_bad_filter_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter({name: [value]})
    assert caught.value.param == name


def test_a_filter_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter({"model": ["a", "b"]})
    assert caught.value.param == "model"


@given(st.sampled_from(sorted(PARAMETERS)), st.text())
def test_no_text_does_anything_but_parse_or_be_refused(name: str, value: str) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_filter({name: [value]})


# The last hour


def test_the_last_hour_slides() -> None:
    clock = [0.0]
    count = HourCount(lambda: clock[0])
    count.now_is(10_000.0)
    count.add([1000.0, 6500.0, 8000.0, 9999.0, 10_005.0])
    assert count.total() == 4
    clock[0] = 200.0
    assert count.total() == 3
    clock[0] = 3620.0
    assert count.total() == 0


def test_nothing_is_old_before_the_clock_of_the_bus_is_known() -> None:
    count = HourCount(lambda: 0.0)
    count.add([5.0, 1e9])
    assert count.total() == 2


@given(st.lists(st.floats(0, 20_000)), st.floats(0, 20_000))
def test_the_count_is_that_of_the_last_hour_to_ten_seconds(moments: list[float], now: float) -> None:
    count = HourCount(lambda: 0.0)
    count.now_is(now)
    count.add(moments)
    least = sum(moment >= now - HourCount.SPAN_S for moment in moments)
    most = sum(moment >= now - HourCount.SPAN_S - HourCount.PIECE_S for moment in moments)
    assert least <= count.total() <= most


@pytest.mark.parametrize(
    "number", [2**63, 2**64 - 1, 2**70, -(2**70)], ids=["beyond SQLite", "beyond orjson's", "a double", "negative"]
)
def test_a_record_that_does_not_fit_is_skipped_and_the_others_of_its_batch_are_kept(
    store: RequestStore, path: Path, number: int
) -> None:
    odd = stored(record(request_id="odd", bytes_in=12345))[0].data.replace(b"12345", str(number).encode())
    usage = stored(record(request_id="usage"))[0].data.replace(b'"prompt_tokens":30', b'"prompt_tokens":%d' % number)
    batch = stored(record(request_id="a"), odd, usage, record(request_id="b"))
    written = store.write(batch, Position("s", 4))
    assert (written.rows, written.skipped) == (2, 2)
    assert store.position() == Position("s", 4)
    assert ids(path) == ["b", "a"]
