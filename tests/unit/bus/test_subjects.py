from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus import subjects

node_ids = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(node_ids, st.sampled_from(subjects.NODE_OPS))
def test_a_node_subject_parses_back_to_its_parts(node_id: str, op: str) -> None:
    assert subjects.parse_node(subjects.node_rpc(node_id, op)) == subjects.NodeSubject(node_id, f"rpc.{op}")
    assert subjects.parse_node(subjects.infer(node_id)) == subjects.NodeSubject(node_id, "infer")
    assert subjects.parse_node(subjects.heartbeat(node_id)) == subjects.NodeSubject(node_id, "heartbeat")


@given(st.text(max_size=40))
def test_what_is_not_a_node_id_never_gets_into_a_subject(text: str) -> None:
    if not subjects.is_node_id(text):
        for build in (subjects.infer, subjects.cancel, subjects.heartbeat, subjects.request_record):
            with pytest.raises(ValueError, match="node id"):
                build(text)


@given(st.text(max_size=60))
def test_any_text_parses_or_gives_none(text: str) -> None:
    subjects.parse_node(text)


@pytest.mark.parametrize("name", ["owner/model", "a.b", "a:b", "a b", "*", ">", "", "a\r\nPUB x"])
def test_a_model_name_is_no_subject_token(name: str) -> None:
    with pytest.raises(ValueError, match="token"):
        subjects.reply("gateway", name)


def test_every_subject_begins_with_the_contract_version() -> None:
    node = "0" * 32
    built = [
        subjects.heartbeat(node),
        subjects.all_heartbeats(),
        subjects.infer(node),
        subjects.cancel(node),
        subjects.request_record(node),
        subjects.all_request_records(),
        subjects.reply("g", "1"),
        subjects.all_replies("g"),
        subjects.all_events(),
        *(subjects.event(topic) for topic in subjects.EVENT_TOPICS),
        *(subjects.node_rpc(node, op) for op in subjects.NODE_OPS),
        *(subjects.router_rpc(op) for op in subjects.ROUTER_OPS),
    ]
    assert all(subject.startswith("llmlb.v1.") for subject in built)
    assert len(set(built)) == len(built)


def test_unknown_operations_and_topics_are_refused() -> None:
    with pytest.raises(ValueError, match="operation"):
        subjects.node_rpc("0" * 32, "explode")
    with pytest.raises(ValueError, match="operation"):
        subjects.router_rpc("explode")
    with pytest.raises(ValueError, match="topic"):
        subjects.event("weather")


def test_a_reply_subject_gives_its_stream_back() -> None:
    assert subjects.reply_stream(subjects.reply("gateway1", "42")) == "42"
