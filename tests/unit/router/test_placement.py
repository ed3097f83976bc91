from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.router.placement import TRIALS, Ask, Row, Table, place
from tests.unit.router.simulation import Cluster, Node, chosen, cold, loading, ready, table

ASK = Ask(prompt_tokens=930, max_tokens=128)

speeds = st.none() | st.floats(1.0, 1e5)
seconds = st.none() | st.floats(0.0, 1e4)
rows = st.builds(
    Row,
    usable=st.sampled_from([True, True, True, False]),
    state=st.sampled_from(["ready", "loading", "cold"]),
    slots=st.integers(0, 16),
    running=st.integers(0, 40),
    prefill_tps=speeds,
    decode_tps=speeds,
    load_s=seconds,
    fits=st.booleans(),
    penalty_s=st.floats(0.0, 30.0),
    closed=st.sampled_from([True, True, True, False]),
)
names = st.sampled_from("abcdef")
snapshots = st.dictionaries(names, rows)
asks = st.builds(
    Ask,
    prompt_tokens=st.integers(0, 5000),
    max_tokens=st.integers(0, 5000),
    warm=st.dictionaries(names, st.integers(0, 6000), max_size=3),
    exclude=st.frozensets(names, max_size=3),
    queued=st.integers(0, 200),
)


def eligible(row: Row) -> bool:
    return row.usable and row.closed and (row.fits or row.state != "cold")


# Who


def test_nobody_is_nobody() -> None:
    assert place(Table(), ASK) is None


def test_a_loaded_node_comes_before_a_cold_one() -> None:
    found = chosen(table(cold=cold(), warm=ready(3)), ASK)
    assert found.node_id == "warm"
    assert not found.waits


def test_a_cold_node_is_woken_when_the_wait_for_the_loaded_one_is_longer_than_the_load() -> None:
    nodes = table(cold=cold(load_s=8.0), warm=ready(4, decode=10.0))
    found = chosen(nodes, ASK)
    assert found.node_id == "warm"
    assert found.waits
    nodes.put("warm", ready(12, decode=10.0))
    assert chosen(nodes, ASK).node_id == "cold"


def test_a_cold_node_is_woken_when_the_queue_at_the_gateway_is_longer_than_the_load() -> None:
    nodes = table(cold=cold(load_s=8.0), warm=ready(4, decode=10.0))
    assert chosen(nodes, ASK._replace(queued=1)).node_id == "warm"
    found = chosen(nodes, ASK._replace(queued=12))
    assert found.node_id == "cold"
    assert not found.waits


def test_a_node_that_loads_already_gets_the_burst_until_its_queue_outlasts_a_further_load() -> None:
    nodes = table(a=cold(), b=cold(), c=cold())
    first = chosen(nodes, ASK).node_id
    for queued in range(4):
        found = chosen(nodes, ASK._replace(queued=0))
        assert found.node_id == first, queued
        nodes.add(found.node_id, 1)
    found = chosen(nodes, ASK._replace(queued=2))
    assert found.node_id == first
    assert found.waits
    assert chosen(nodes, ASK._replace(queued=1000)).node_id != first


def test_a_loading_node_is_waited_for_even_if_it_is_almost_done() -> None:
    assert chosen(table(a=loading(left_s=1.0), b=cold(load_s=0.5)), ASK).node_id == "a"


def test_a_model_that_does_not_fit_is_not_loaded() -> None:
    assert place(table(a=cold(fits=False)), ASK) is None
    assert chosen(table(a=cold(fits=False, load_s=1.0), b=cold(load_s=60.0)), ASK).node_id == "b"


def test_the_faster_node_is_taken_and_the_slow_one_when_the_fast_one_is_behind() -> None:
    nodes = table(slow=ready(prefill=400.0), fast=ready(prefill=1200.0))
    assert chosen(nodes, ASK).node_id == "fast"
    nodes.put("fast", ready(9, prefill=1200.0))
    assert chosen(nodes, ASK).node_id == "slow"


def test_a_slow_node_with_a_free_slot_is_taken_only_when_waiting_for_the_fast_one_takes_longer() -> None:
    nodes = table(slow=ready(prefill=100.0, decode=10.0), fast=ready(4, prefill=4000.0, decode=100.0))
    found = chosen(nodes, ASK)
    assert found.node_id == "fast"
    assert found.waits
    assert chosen(nodes, ASK._replace(queued=50)).node_id == "slow"


def test_a_conversation_goes_back_to_its_cache() -> None:
    nodes = table(a=ready(), b=ready(3), c=ready())
    found = chosen(nodes, ASK._replace(warm={"b": 896}))
    assert found.node_id == "b"
    assert "warm 896 of 930 tokens" in found.reason


def test_a_conversation_leaves_its_cache_when_the_wait_there_is_longer_than_what_it_saves() -> None:
    nodes = table(a=ready(), b=ready(6))
    assert chosen(nodes, ASK._replace(warm={"b": 896})).node_id == "a"
    assert chosen(nodes, ASK._replace(prompt_tokens=20_000, warm={"b": 19_000})).node_id == "b"


def test_the_cache_of_a_model_that_is_not_in_memory_any_more_counts_nothing() -> None:
    assert chosen(table(a=loading(left_s=2.0), b=loading(left_s=1.0)), ASK._replace(warm={"a": 900})).node_id == "b"


def test_a_node_that_fails_fast_does_not_look_idle() -> None:
    nodes = table(failing=replace(ready(), penalty_s=4.0), busy=ready(4))
    assert chosen(nodes, ASK).node_id == "busy"
    assert "4.0 s for failures" in chosen(table(failing=replace(ready(), penalty_s=4.0)), ASK).reason


def test_numbers_that_make_no_sense_count_as_not_measured() -> None:
    nodes = table(a=ready(prefill=0.0, decode=-3.0), b=ready(prefill=float("nan"), decode=float("inf")))
    nodes.put("c", replace(cold(), load_s=float("nan"), running=-5, slots=-1))
    assert chosen(nodes, ASK).node_id in "ab"


# How it says so


@pytest.mark.parametrize(
    ("row", "start"),
    [
        (ready(1), "loaded, 1 of 4 slots busy, "),
        (ready(7), "loaded, 4 of 4 slots busy, 3 waiting, "),
        (loading(), "loading, 1 of 4 slots busy, "),
        (cold(), "cold, 0 of 4 slots busy, "),
    ],
)
def test_the_reason_says_what_counted(row: Row, start: str) -> None:
    found = chosen(table(a=row), ASK)
    assert found.reason == f"{start}{found.cost_s:.2f} s"


def test_the_cost_is_the_time_to_the_first_token() -> None:
    assert chosen(table(a=ready(prefill=1000.0)), ASK).cost_s == pytest.approx(0.93, rel=0.1)
    assert chosen(table(a=cold(load_s=5.0)), ASK).cost_s == pytest.approx(5.93, rel=0.1)


# Even shares


@pytest.mark.parametrize("measured", [True, False])
def test_equal_nodes_share_a_burst_evenly(measured: bool) -> None:
    row = ready() if measured else ready(prefill=None, decode=None)
    nodes = table(**dict.fromkeys("abcde", row))
    share: Counter[str] = Counter()
    for _ in range(100):
        name = chosen(nodes, ASK).node_id
        share[name] += 1
        nodes.add(name, 1)
    assert max(share.values()) - min(share.values()) <= 1


def test_nodes_whose_speeds_differ_by_what_measuring_differs_share_a_burst_within_a_fifth() -> None:
    nodes = table(a=ready(prefill=1000.0), b=ready(prefill=950.0, decode=52.0), c=ready(prefill=1040.0, decode=48.0))
    for _ in range(30):
        nodes.add(chosen(nodes, ASK).node_id, 1)
    assert all(8 <= row.running <= 12 for row in nodes.rows().values())


def test_one_request_after_the_other_goes_round_among_equal_nodes() -> None:
    nodes = table(a=ready(), b=ready(prefill=1010.0), c=ready(prefill=995.0))
    order = []
    for _ in range(9):
        name = chosen(nodes, ASK).node_id
        order.append(name)
        nodes.add(name, 1)
        nodes.add(name, -1)
    assert order[:3] == order[3:6] == order[6:]
    assert sorted(order[:3]) == ["a", "b", "c"]


def test_gateways_with_different_seeds_begin_at_different_nodes() -> None:
    rows = dict.fromkeys("abcdefgh", ready())
    assert len({chosen(table(str(seed), **rows), ASK).node_id for seed in range(20)}) > 3


@pytest.mark.parametrize("gateway_queue", [True, False])
@pytest.mark.parametrize("load", [1.0, 1.3])
def test_a_node_three_times_as_fast_gets_three_times_the_work_under_full_load(gateway_queue: bool, load: float) -> None:
    nodes = {"a": Node(4, 500.0, 20.0), "b": Node(4, 500.0, 20.0), "c": Node(4, 1500.0, 60.0)}
    cluster = Cluster(nodes, gateway_queue=gateway_queue)
    capacity = 4 * (1 + 1 + 3) / (500 / 500 + 125 / 20)
    begun = cluster.run(2000, per_s=load * capacity)
    total = begun.total()
    assert begun["a"] / total == pytest.approx(1 / 5, rel=0.2)
    assert begun["b"] / total == pytest.approx(1 / 5, rel=0.2)
    assert begun["c"] / total == pytest.approx(3 / 5, rel=0.2)


@pytest.mark.parametrize("load", [0.1, 0.5, 1.0])
def test_equal_nodes_get_equal_work_at_any_load(load: float) -> None:
    cluster = Cluster({name: Node(4, 500.0, 20.0) for name in "abcd"})
    begun = cluster.run(800, per_s=load * 16 / (500 / 500 + 125 / 20))
    assert all(share / begun.total() == pytest.approx(1 / 4, rel=0.2) for share in begun.values())
    assert len(begun) == 4


# Nobody starves


def test_an_unmeasured_node_gets_its_first_requests_beside_much_faster_ones() -> None:
    nodes = {name: Node(4, 5000.0, 200.0) for name in "ab"} | {"new": Node(4, 500.0, 20.0, measured=False)}
    cluster = Cluster(nodes)
    begun = cluster.run(100, per_s=0.5)
    assert 1 <= begun["new"] <= TRIALS
    assert nodes["new"].measured


def test_an_unmeasured_node_that_turns_out_fast_gets_the_most() -> None:
    nodes = {name: Node(4, 500.0, 20.0) for name in "ab"} | {"new": Node(4, 5000.0, 200.0, measured=False)}
    begun = Cluster(nodes).run(200, per_s=0.5)
    assert begun["new"] > 150


def test_a_node_that_never_tells_its_speed_counts_as_typical_after_its_trials() -> None:
    nodes = table(a=ready(), b=ready(prefill=4000.0), c=ready(), mute=ready(prefill=None, decode=None))
    share: Counter[str] = Counter()
    for _ in range(50):
        name = chosen(nodes, ASK).node_id
        share[name] += 1
        nodes.add(name, 1)
        nodes.add(name, -1)
    assert share == {"mute": TRIALS, "b": 50 - TRIALS}


def test_a_node_that_was_measured_slow_is_tried_again_after_a_while() -> None:
    nodes = table(a=ready(prefill=4000.0), slow=ready(prefill=10.0))
    share: Counter[str] = Counter()
    for _ in range(2100):
        name = chosen(nodes, ASK).node_id
        share[name] += 1
        nodes.add(name, 1)
        nodes.add(name, -1)
    assert share["slow"] == 2


def test_what_a_node_measured_is_known_while_the_model_is_out_of_its_memory() -> None:
    nodes = table(a=replace(ready(prefill=100.0), load_s=3.0), b=replace(ready(prefill=2000.0), load_s=30.0))
    nodes.put("a", cold(load_s=None))
    nodes.put("b", cold(load_s=None))
    assert chosen(nodes, ASK).node_id == "a"
    assert chosen(nodes, ASK).cost_s == pytest.approx(3.0 + 9.3, rel=0.1)


# The table


def test_free_counts_slots_of_usable_loaded_and_loading_nodes() -> None:
    nodes = table(
        a=ready(1), b=ready(9), c=loading(1), d=replace(ready(), usable=False), e=replace(ready(), closed=False)
    )
    assert nodes.free() == 3 + 0 + 3
    nodes.add("a", 2)
    assert nodes.free() == 1 + 3
    nodes.drop("c")
    assert nodes.free() == 1
    nodes.add("a", -99)
    assert nodes.rows()["a"].running == 0
    assert nodes.free() == 4


def test_cold_nodes_count_as_free_only_when_the_model_is_on_its_way_nowhere_and_then_once() -> None:
    nodes = table(a=cold(), b=cold(), c=cold(fits=False))
    assert nodes.free() == 4
    nodes.add("a", 1)
    assert nodes.free() == 3
    nodes.put("b", ready(4))
    assert nodes.free() == 3
    nodes.drop("a")
    assert nodes.free() == 0


def test_a_table_grows_and_shrinks_and_keeps_the_rows() -> None:
    nodes = table(**{f"n{number}": ready(number % 5) for number in range(100)})
    for number in range(0, 100, 2):
        nodes.drop(f"n{number}")
    nodes.drop("n0")
    assert nodes.rows() == {f"n{number}": ready(number % 5) for number in range(1, 100, 2)}
    assert len(nodes) == 50
    assert chosen(nodes, ASK).node_id in {f"n{number}" for number in range(5, 100, 10)}


def test_what_is_not_in_the_table_changes_nothing() -> None:
    nodes = table(a=ready())
    nodes.add("gone", 1)
    nodes.drop("gone")
    ask = ASK._replace(warm={"gone": 500}, exclude=frozenset({"gone"}))
    assert chosen(nodes, ask).node_id == "a"


def test_waits_are_reckoned_by_how_long_requests_really_are() -> None:
    nodes = table(a=ready(5), b=cold(load_s=5.0))
    assert chosen(nodes, ASK).node_id == "a"
    for _ in range(200):
        nodes.finished(prompt_tokens=2000, answer_tokens=4000)
    assert chosen(nodes, ASK).node_id == "b"


# For all snapshots


@given(snapshots, asks)
def test_only_a_node_that_can_take_it_is_chosen_and_none_only_if_there_is_none(
    snapshot: dict[str, Row], ask: Ask
) -> None:
    able = {name for name, row in snapshot.items() if eligible(row) and name not in ask.exclude}
    found = place(table(**snapshot), ask)
    assert (found is None) == (not able)
    if found is not None:
        row = snapshot[found.node_id]
        assert found.node_id in able
        assert found.cost_s >= 0.0
        assert found.waits == (row.running >= (row.slots or 4))


@given(snapshots, asks)
def test_the_decision_is_repeatable(snapshot: dict[str, Row], ask: Ask) -> None:
    nodes = table(**snapshot)
    assert place(nodes, ask) == place(nodes, ask) == place(table(**snapshot), ask)


@given(snapshots, asks, names, st.integers(1, 20))
def test_load_on_a_node_never_draws_a_request_to_it(snapshot: dict[str, Row], ask: Ask, name: str, more: int) -> None:
    """Of a node that has the model already: the first request to a cold one does change what it is."""
    nodes = table(**snapshot)
    before = place(nodes, ask)
    row = snapshot.get(name)
    if before is None or row is None or before.node_id == name or (row.state == "cold" and not row.running):
        return
    nodes.add(name, more)
    after = place(nodes, ask)
    assert after is not None
    assert after.node_id != name


@given(snapshots, asks, names, st.floats(0.1, 30.0))
def test_failures_of_a_node_never_draw_a_request_to_it(
    snapshot: dict[str, Row], ask: Ask, name: str, penalty_s: float
) -> None:
    nodes = table(**snapshot)
    before = place(nodes, ask)
    if before is None or name not in snapshot or before.node_id == name:
        return
    nodes.put(name, replace(snapshot[name], penalty_s=snapshot[name].penalty_s + penalty_s))
    after = place(nodes, ask)
    assert after is not None
    assert after.node_id != name


@given(snapshots, st.lists(st.tuples(names, st.sampled_from(["put", "drop", "more", "less"]), rows), max_size=30))
def test_what_is_counted_step_by_step_is_what_a_new_table_counts(
    snapshot: dict[str, Row], steps: list[tuple[str, str, Row]]
) -> None:
    nodes = table(**snapshot)
    expected = dict(snapshot)
    for name, step, row in steps:
        if step == "put":
            nodes.put(name, row)
            expected[name] = row
        elif step == "drop":
            nodes.drop(name)
            expected.pop(name, None)
        else:
            change = 2 if step == "more" else -3
            nodes.add(name, change)
            if name in expected:
                expected[name] = replace(expected[name], running=max(0, expected[name].running + change))
    assert nodes.rows() == expected
    assert nodes.free() == table(**expected).free()
    assert len(nodes) == len(expected)
