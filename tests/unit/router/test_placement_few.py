"""Few nodes are placed on without numpy, and a decision is the same as with it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmlb.router.placement import Ask, Row, Table, place

_SPEED = st.one_of(st.none(), st.floats(min_value=1.0, max_value=5000.0))
_ROWS = st.builds(
    Row,
    usable=st.booleans() | st.just(True),
    state=st.sampled_from(["ready", "ready", "ready", "loading", "cold"]),
    slots=st.integers(0, 6),
    running=st.integers(0, 8),
    prefill_tps=_SPEED,
    decode_tps=_SPEED,
    load_s=st.one_of(st.none(), st.floats(min_value=0.1, max_value=60.0)),
    fits=st.booleans() | st.just(True),
    penalty_s=st.sampled_from([0.0, 0.0, 2.5]),
    closed=st.booleans() | st.just(True),
)


class _Vectors(Table):
    """Always with numpy."""

    def few(self, prompt: float, answer: float, queued: int) -> list[float] | None:
        return None


@given(
    st.lists(_ROWS, min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 900), st.integers(0, 3)), max_size=25),
)
def test_few_nodes_and_many_are_decided_on_alike(rows: list[Row], steps: list[tuple[int, int, int]]) -> None:
    plain, vectors = Table("seed"), _Vectors("seed")
    for number, row in enumerate(rows):
        plain.put(f"n{number}", row)
        vectors.put(f"n{number}", row)
    for node, prompt, kind in steps:
        ask = Ask(prompt_tokens=prompt, max_tokens=node, queued=node if kind == 1 else 0)
        found = place(plain, ask)
        assert found == place(vectors, ask)
        for table in (plain, vectors):
            if kind == 2:
                table.drop(f"n{node}")
            elif kind == 3:
                table.add(f"n{node}", -1)
            elif found is not None:
                table.add(found.node_id, 1)
