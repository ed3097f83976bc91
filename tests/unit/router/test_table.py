"""A table that follows every request in small steps must weigh its nodes as one that is told all at once."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmlb.router import table as table_module
from llmlb.router.table import Row, State, Table

NODES = ("a", "b", "c")
SPEEDS = st.none() | st.sampled_from([10.0, 200.0, 3000.0])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    state: State = draw(st.sampled_from(["ready", "ready", "loading", "cold"]))
    return Row(
        usable=draw(st.booleans()) or draw(st.booleans()),
        state=state,
        slots=draw(st.integers(0, 4)),
        running=draw(st.integers(0, 6)),
        prefill_tps=draw(SPEEDS),
        decode_tps=draw(SPEEDS),
        load_s=draw(st.none() | st.just(3.0)),
        penalty_s=draw(st.sampled_from([0.0, 0.0, 2.0])),
        closed=draw(st.booleans()) or draw(st.booleans()),
    )


STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NODES), rows()),
    st.tuples(st.just("add"), st.sampled_from(NODES), st.sampled_from([1, 1, -1])),
    st.tuples(st.just("drop"), st.sampled_from(NODES), st.none()),
    st.tuples(st.just("finished"), st.integers(1, 4000), st.integers(1, 4000)),
)


@given(st.lists(STEPS, max_size=60))
def test_small_steps_and_a_whole_look_weigh_the_same(steps: list[tuple[str, object, object]]) -> None:
    table = Table("seed")
    for what, first, second in steps:
        getattr(table, what)(*([first] if second is None else [first, second]))
        costs, free = table.weighed(300, 100, 2).copy(), table.free()
        for index in range(len(table)):
            table._weigh(index)
        np.testing.assert_array_equal(costs, table.weighed(300, 100, 2))
        assert free == table.free()


COMES_AND_GOES = st.tuples(st.sampled_from(["chosen", "chosen", "chosen", "there", "gone"]), st.sampled_from(NODES))


@given(st.lists(COMES_AND_GOES, max_size=120))
def test_a_node_that_nobody_chose_for_long_is_found_at_the_very_decision(steps: list[tuple[str, str]]) -> None:
    table, waits = Table("seed"), 4
    chosen_at: dict[str, int] = {}  # the one that was not chosen for longest first
    forgotten: set[str] = set()
    decisions = 0
    with patch.object(table_module, "FORGOTTEN_AFTER", waits):
        for what, node in steps:
            if what == "there":
                table.put(node, Row(usable=True, state="ready", slots=2, running=0))
                chosen_at.setdefault(node, decisions)
            elif what == "gone":
                table.drop(node)
                chosen_at.pop(node, None)
                forgotten.discard(node)
            elif node in chosen_at:
                table.add(node, 1)
                decisions += 1
                del chosen_at[node]
                chosen_at[node] = decisions
                forgotten.discard(node)
                oldest = next(iter(chosen_at))
                if decisions - chosen_at[oldest] >= waits * len(chosen_at):
                    del chosen_at[oldest]
                    chosen_at[oldest] = decisions
                    forgotten.add(oldest)
            assert {entry.node_id for entry in table.entries if entry.forgotten} == forgotten
