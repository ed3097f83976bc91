"""What ``llmlb bus watch`` says of messages: sizes and counts, never a prompt, never a secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus import codec, subjects
from llmlb.bus.messages.errors import WireError
from llmlb.bus.messages.events import NodeStateChanged
from llmlb.bus.messages.infer import (
    Accepted,
    CancelRequest,
    ChatMessage,
    Delta,
    End,
    Failed,
    InferRequest,
    Progress,
    Usage,
)
from llmlb.bus.messages.nodes import Heartbeat
from llmlb.bus.messages.pulls import PullProgress
from llmlb.cli.bus_view import KNOWN_STREAMS, BusView, Seen, Wanted, heartbeat, open_body
from llmlb.cli.bus_watch import json_of, line_of

NODE = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
SECRET = "Tell nobody: the password is swordfish"


def request(request_id: str = "req1", model: str = "owner/a", node: str = NODE) -> tuple[str, bytes, str]:
    body = InferRequest(
        request_id=request_id,
        model=model,
        kind="chat",
        messages=(ChatMessage(role="user", content=SECRET),),
    )
    return subjects.infer(node), codec.encode(body), subjects.reply("gw", request_id)


def told(view: BusView, subject: str, message: Any) -> Seen:
    return view.read(subject, codec.encode(message))


def conversation(view: BusView) -> list[Seen]:
    """A request and all its replies."""
    subject, data, reply = request()
    replies = [
        Accepted(request_id="req1", seq=0, node_id=NODE),
        Progress(request_id="req1", seq=1, phase="prefill", done=64, total=128),
        Delta(request_id="req1", seq=2, text=SECRET, token_ids=(1, 2)),
        Delta(request_id="req1", seq=3, text="b", token_ids=(3,)),
        End(request_id="req1", seq=4, finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=3)),
    ]
    return [view.read(subject, data, reply), *(told(view, reply, each) for each in replies)]


def test_a_request_and_its_replies_are_told_with_node_model_and_request() -> None:
    seen = conversation(BusView())
    assert [each.text for each in seen] == [
        f"chat owner/a, 1 message, {len(SECRET)} characters",
        "#0 accepted",
        "#1 progress: prefill 64/128",
        f"#2 2 tokens, {len(SECRET)} characters",
        "#3 1 token, 1 character",
        "#4 end (stop): 5 + 3 tokens in 2 pieces; prefill 0 ms, decode 0 ms",
    ]
    assert {(each.node, each.model, each.request) for each in seen} == {(NODE, "owner/a", "req1")}
    assert [each.kind for each in seen] == ["infer", "reply", "reply", "piece", "piece", "reply"]


@pytest.mark.parametrize("form", [line_of, json_of])
def test_texts_are_shown_with_bodies_only(form: Any) -> None:
    for seen in conversation(BusView()):
        assert "swordfish" not in form(seen, 0.0, bodies=False)
    whole = "".join(form(seen, 0.0, bodies=True) for seen in conversation(BusView()))
    assert whole.count("swordfish") == 2


def test_a_failure_is_told_with_its_reason() -> None:
    view = BusView()
    subject, data, reply = request()
    view.read(subject, data, reply)
    error = WireError(reason="engine_crashed", message="it died at https://me:pw@hub/x")
    seen = told(view, reply, Failed(request_id="req1", seq=0, error=error))
    assert seen.text == "#0 failed: engine_crashed: it died at https://****@hub/x"


def beat(**fields: Any) -> Heartbeat:
    known = {"node_id": NODE, "instance": "i", "version": "0.1.0", "name": "box", "machine": "m", "gateway": "g:1"}
    return Heartbeat(**{**known, "uptime_s": 1, "inventory": 1, "models_ready": 0, "models_total": 0, **fields})


def test_heartbeats_and_probes_are_hidden_unless_asked_for() -> None:
    view = BusView()
    seen = told(view, subjects.heartbeat(NODE), beat(join_token="a-proof-of-a-token"))
    probe = told(view, subjects.cancel(NODE), CancelRequest(request_id=""))
    assert not Wanted().takes(seen)
    assert not Wanted().takes(probe)
    assert Wanted(heartbeats=True).takes(seen)
    assert heartbeat(seen).text == "box 0.1.0: nothing loaded; 0 running"
    assert "proof" not in json_of(heartbeat(seen), 0.0, bodies=True)


def test_pieces_are_hidden_unless_asked_for() -> None:
    seen = conversation(BusView())
    assert [Wanted().takes(each) for each in seen] == [True, True, True, False, False, True]
    assert all(Wanted(pieces=True).takes(each) for each in seen)


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (Wanted(node="0123"), True),
        (Wanted(node="0123", model="OWNER", request="req"), True),
        (Wanted(node="fff"), False),
        (Wanted(model="owner/b"), False),
        (Wanted(request="eq1"), False),
        (Wanted(node="0123", model="owner/b"), False),
    ],
)
def test_filters_take_beginnings_of_ids_and_parts_of_names(wanted: Wanted, takes: bool) -> None:
    assert {wanted.takes(each) for each in conversation(BusView()) if each.kind != "piece"} == {takes}


def test_buckets_of_settings_and_identities_are_never_opened() -> None:
    view = BusView()
    for bucket, key in (("llmlb-identity", "people"), ("llmlb-settings", "join.0123456789ab")):
        seen = view.read(f"$KV.{bucket}.{key}", b'{"digest": "swordfish"}')
        assert seen.body is None
        assert "swordfish" not in json_of(seen, 0.0, bodies=True)
        assert "0123456789ab" not in json_of(seen, 0.0, bodies=True)
    node = view.read(f"$KV.llmlb-nodes.{NODE}", b'{"name": "box"}')
    assert (node.node, node.body) == (NODE, {"name": "box"})
    gone = view.read("$KV.llmlb-models.owner/a=Q4", b"", headers={"KV-Operation": "DEL"})
    assert (gone.model, gone.text) == ("owner/a:Q4", "llmlb-models owner/a=Q4 deleted")


def test_events_and_pulls_have_words_of_their_own() -> None:
    view = BusView()
    event = NodeStateChanged(node_id=NODE, name="box", before=None, after="pending", reason="first heartbeat")
    assert told(view, subjects.event("node"), event).text == "box: new → pending, first heartbeat"
    pull = PullProgress(
        task_id="t", node_id=NODE, model="o/a", status="downloading", phase="downloading", total_bytes=2 * 10**9,
        downloaded_bytes=10**9, started_at=0.0,
    )  # fmt: skip
    seen = told(view, subjects.progress(NODE, "t"), pull)
    assert (seen.text, seen.node, seen.model) == ("o/a downloading 1.0 GB/2.0 GB", NODE, "o/a")


def test_a_message_of_a_newer_version_is_told_by_its_type() -> None:
    data = json.dumps({"type": "llmlb.infer.dreamt.v2", "request_id": "r", "seq": 1}).encode()
    assert BusView().read("llmlb.v1.reply.gw.1", data).text == "#1 dreamt"
    data = json.dumps({"type": "llmlb.moon.risen.v1", "model": "o/a"}).encode()
    assert BusView().read("llmlb.v1.moon.risen", data).text == "moon.risen o/a"


def test_the_question_whether_a_gateway_is_there_is_shown_where_probes_are() -> None:
    seen = BusView().read("llmlb.v1.reply.gw.alive", b"")
    assert (seen.kind, seen.text) == ("probe", "are you there?")
    assert not Wanted().takes(seen)


def test_what_another_machine_writes_cannot_move_the_cursor() -> None:
    subject, data, reply = request(model="evil\x1b[2J")
    seen = BusView().read(subject, data, reply)
    assert "\x1b" not in line_of(seen, 0.0, bodies=False)


def test_requests_that_never_end_are_forgotten() -> None:
    view = BusView()
    for number in range(KNOWN_STREAMS + 10):
        view.read(*request(f"r{number}"))
    assert len(view._streams) == KNOWN_STREAMS


@given(
    st.binary(max_size=60),
    st.sampled_from(["reply.g.1", f"node.{NODE}.infer", f"node.{NODE}.heartbeat", "x", "event.node"]),
)
def test_whatever_the_bytes_are_there_is_a_line(data: bytes, tail: str) -> None:
    seen = BusView().read(f"llmlb.v1.{tail}", data)
    assert line_of(heartbeat(seen) if seen.kind == "heartbeat" else seen, 0.0, bodies=True)


@given(st.recursive(st.text() | st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_only_fields_of_secrets_are_masked(value: Any) -> None:
    masked = open_body({"password": value, "join_token": "t", "token": "ab", "deep": [{"secret": value}]})
    assert masked["password"] == (None if value is None else "****")
    assert (masked["join_token"], masked["token"]) == ("****", "ab")
    assert masked["deep"][0]["secret"] in ("****", None)
