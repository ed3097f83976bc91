from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmlb.router.placement import Candidate, cost, place


def node(name: str, running: int = 0, *, slots: int = 4, loaded: bool = True, picked: int = 0) -> Candidate:
    return Candidate(name, slots if loaded else 0, running, loaded, picked)


candidates = st.builds(
    Candidate,
    node_id=st.text("abc", min_size=1, max_size=3),
    slots=st.integers(0, 16),
    running=st.integers(0, 64),
    loaded=st.booleans(),
    picked=st.integers(0, 100),
)


def test_nobody_is_nobody() -> None:
    assert place([]) is None


def test_an_idle_node_with_the_model_loaded_comes_before_a_cold_one() -> None:
    placement = place([node("cold", loaded=False), node("warm")])
    assert placement is not None
    assert placement.node_id == "warm"
    assert placement.reason == "loaded, 0 on 4 slots"


def test_a_cold_node_is_woken_once_the_warm_one_is_half_busy() -> None:
    for running, expected in ((0, "warm"), (1, "warm"), (3, "cold")):
        placement = place([node("cold", loaded=False), node("warm", running)])
        assert placement is not None
        assert placement.node_id == expected


def test_the_node_with_the_most_room_is_taken() -> None:
    placement = place([node("a", 2), node("b", 1), node("c", 3)])
    assert placement is not None
    assert placement.node_id == "b"


def test_equal_nodes_share_a_burst_evenly() -> None:
    nodes = {name: node(name) for name in "abcde"}
    share: Counter[str] = Counter()
    for number in range(1, 101):
        placement = place(nodes.values())
        assert placement is not None
        name = placement.node_id
        share[name] += 1
        nodes[name] = replace(nodes[name], running=nodes[name].running + 1, picked=number)
    assert max(share.values()) - min(share.values()) <= 1


def test_one_request_after_the_other_goes_round() -> None:
    nodes = {name: node(name) for name in "abc"}
    order = []
    for number in range(1, 7):
        placement = place(nodes.values())
        assert placement is not None
        order.append(placement.node_id)
        nodes[placement.node_id] = replace(nodes[placement.node_id], picked=number)
    assert order == ["a", "b", "c", "a", "b", "c"]


@given(st.lists(candidates, min_size=1, max_size=20))
def test_the_choice_is_one_of_the_cheapest_and_does_not_depend_on_their_order(nodes: list[Candidate]) -> None:
    placement = place(nodes)
    assert placement is not None
    assert min(cost(c) for c in nodes) in [cost(c) for c in nodes if c.node_id == placement.node_id]
    assert place(list(reversed(nodes))) == placement or len({c.node_id for c in nodes}) < len(nodes)


@given(candidates)
def test_one_more_request_never_makes_a_node_cheaper(candidate: Candidate) -> None:
    assert cost(replace(candidate, running=candidate.running + 1)) > cost(candidate)
