"""What ``llmlb bus watch`` says of a message: from subject and bytes to a line. Pure, but for what it remembers.

Only sizes and counts of prompts and answers are said. Secrets are cut out even where bodies are asked for, and what is
written into the buckets of settings and identities is never shown at all.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmlb.bus import subjects
from llmlb.bus.logs import without_secrets
from llmlb.cli.render import counted, printable, size

KNOWN_STREAMS = 4096
"""Requests whose node and model are remembered, so that their replies can be told apart; the oldest is forgotten."""
SECRET_KEYS = frozenset({"join_token", "password", "password_hash", "secret", "api_key", "code"})
BULKY_KEYS = frozenset({"data", "vector"})
"""Images and vectors: nobody reads their base64."""
BULKY_FROM = 64
SECRET_FROM = 16
"""Characters from which a field ``token`` is one of ours, and not a piece of an answer."""
_KEPT_CLOSED = (subjects.BUCKET_SETTINGS, subjects.BUCKET_IDENTITY)


@dataclass(frozen=True, slots=True)
class Seen:
    """One message: where it belongs, and what is said of it."""

    subject: str
    kind: str
    """The part of the contract: infer, reply, pull, heartbeat, rpc, event, record, log, bucket …"""
    text: str
    size_bytes: int
    type: str | None = None
    node: str | None = None
    model: str | None = None
    request: str | None = None
    body: Any = None
    """Without secrets; None where it is kept closed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is shown. Beginnings of ids; a part of a model's name, in whatever case."""

    node: str | None = None
    model: str | None = None
    request: str | None = None
    heartbeats: bool = False
    pieces: bool = False

    def takes(self, seen: Seen) -> bool:
        if (seen.kind in ("heartbeat", "probe") and not self.heartbeats) or (seen.kind == "piece" and not self.pieces):
            return False
        return (
            (self.node is None or (seen.node or "").startswith(self.node.lower()))
            and (self.model is None or self.model.lower() in (seen.model or "").lower())
            and (self.request is None or (seen.request or "").startswith(self.request))
        )


@dataclass(slots=True)
class _Stream:
    node: str
    model: str
    request: str
    pieces: int = 0


class BusView:
    """Reads messages in their order; remembers which reply belongs to which request."""

    def __init__(self) -> None:
        self._streams: OrderedDict[str, _Stream] = OrderedDict()

    def read(self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> Seen:
        """What is to be said of it. Never raises: bytes that are no message are said to be that."""
        if subject.startswith("$KV."):
            return _bucket(subject, data, headers or {})
        parts = subject.split(".")
        topic = parts[2] if len(parts) > 2 else "?"
        node = parts[3] if topic != "reply" and len(parts) > 3 and subjects.is_node_id(parts[3]) else None
        kind = ".".join(parts[4:]) if topic == "node" and len(parts) > 4 else topic
        if kind == "heartbeat":  # the most frequent one is parsed only where it is looked at
            return Seen(subject, kind, "", len(data), "llmlb.node.heartbeat.v1", node, body=data)
        if topic == "reply" and not data:  # a node, to whoever asked it: see node/readers.py
            return Seen(subject, "probe", "are you there?", 0)
        seen = Seen(subject, kind, "", len(data), node=node)
        try:
            body = json.loads(data)
            seen = replace(seen, type=str(body["type"]), body=open_body(body))
            return self._told(seen, body, reply)
        except (ValueError, LookupError, TypeError, AttributeError):
            return replace(seen, text=f"not a message of the contract ({size(len(data))})")

    def _told(self, seen: Seen, body: dict[str, Any], reply: str) -> Seen:
        topic = seen.subject.split(".")[2]
        if seen.kind == "infer":
            return self._request(seen, body, reply)
        if topic == "reply":
            return self._reply(seen, body)
        if seen.kind == "cancel" and not body.get("request_id"):
            return replace(seen, kind="probe", text="are you there?")
        model = body.get("model") if isinstance(body.get("model"), str) else None
        seen = replace(
            seen, node=seen.node or _text(body.get("node_id")), model=model, request=_text(body.get("request_id"))
        )
        teller = _TELLERS.get(str(seen.type))
        return replace(seen, text=without_secrets(printable(teller(body) if teller else _plainly(seen, body))))

    def _request(self, seen: Seen, body: dict[str, Any], reply: str) -> Seen:
        stream = _Stream(seen.node or "", str(body["model"]), str(body["request_id"]))
        self._streams[reply] = stream
        while len(self._streams) > KNOWN_STREAMS:
            self._streams.popitem(last=False)
        return replace(seen, model=stream.model, request=stream.request, text=_asked(body))

    def _reply(self, seen: Seen, body: dict[str, Any]) -> Seen:
        stream = self._streams.get(seen.subject) or _Stream(str(body.get("node_id") or ""), "", str(body["request_id"]))
        seen = replace(seen, node=stream.node or None, model=stream.model or None, request=stream.request)
        what = str(seen.type).split(".")[2]
        if what in ("delta", "embedded"):
            stream.pieces += 1
            return replace(seen, kind="piece", text=printable(f"#{body['seq']} {_piece(body)}"))
        if what in ("end", "failed"):
            self._streams.pop(seen.subject, None)
        more = _REPLIES[what](body, stream) if what in _REPLIES else ""
        return replace(seen, text=printable(f"#{body['seq']} {what}{more}"))


def _text(value: Any) -> str | None:
    return printable(value) or None if isinstance(value, str) else None


def heartbeat(seen: Seen) -> Seen:
    """A heartbeat with its text; :meth:`BusView.read` leaves that open."""
    try:
        body = json.loads(seen.body)
        loaded = (
            ", ".join(f"{m['name']} {m['running']}/{m['slots']}" for m in body.get("loaded", ())) or "nothing loaded"
        )
        draining = " draining" if body.get("draining") else ""
        text = f"{body['name']} {body['version']}{draining}: {loaded}; {body.get('running', 0)} running"
        return replace(seen, text=without_secrets(printable(text)), body=open_body(body))
    except (ValueError, LookupError, TypeError, AttributeError):
        return replace(seen, text="not a message of the contract", body=None)


def open_body(value: Any, key: str = "") -> Any:
    """A body that may be shown: fields that hold secrets are masked, at any depth."""
    if value is not None and (key in SECRET_KEYS or (key == "token" and len(str(value)) >= SECRET_FROM)):
        return "****"
    if key in BULKY_KEYS and isinstance(value, str) and len(value) > BULKY_FROM:
        return f"({len(value)} characters)"
    if isinstance(value, dict):
        return {name: open_body(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [open_body(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def _bucket(subject: str, data: bytes, headers: Mapping[str, str]) -> Seen:
    _, bucket, key = subject.split(".", 2)
    done = {"DEL": "deleted", "PURGE": "deleted"}.get(headers.get("KV-Operation", ""), f"put, {size(len(data))}")
    closed = bucket in _KEPT_CLOSED
    shown = key.split(".")[0] + (".…" if "." in key else "") if closed else key
    body = None
    if not closed and data:
        try:
            body = open_body(json.loads(data))
        except ValueError:
            body = None
    node = key if bucket == subjects.BUCKET_NODES and subjects.is_node_id(key) else None
    model = subjects.model_name(key) if bucket == subjects.BUCKET_MODELS else None
    where = f"$KV.{bucket}.{shown}"
    return Seen(where, "bucket", printable(f"{bucket} {shown} {done}"), len(data), node=node, model=model, body=body)


def _asked(body: dict[str, Any]) -> str:
    kind = body.get("kind", "?")
    if kind == "chat":
        messages = body.get("messages", ())
        count = sum(len(message["content"]) for message in messages)
        what = f"{counted(len(messages), 'message')}, {counted(count, 'character')}"
    elif kind == "embedding":
        what = counted(len(body.get("inputs", ())), "input")
    else:
        what = counted(len(body.get("prompt") or ""), "character")
    said = [f"{kind} {body['model']}", what]
    if limit := body.get("sampling", {}).get("max_tokens"):
        said.append(f"at most {limit} tokens")
    if body.get("attempt"):
        said.append(f"attempt {body['attempt'] + 1}, goes on after {len(body.get('continuation', ()))} tokens")
    return printable(", ".join(said))


def _piece(body: dict[str, Any]) -> str:
    if "vector" in body:
        return f"vector {body.get('index', 0)}"
    thought = f", {len(body['reasoning'])} of thinking" if body.get("reasoning") else ""
    tokens, text = len(body.get("token_ids", ())), len(body.get("text", ""))
    return f"{counted(tokens, 'token')}, {counted(text, 'character')}{thought}"


def _ended(body: dict[str, Any], stream: _Stream) -> str:
    usage, timings = body.get("usage", {}), body.get("timings", {})
    return (
        f" ({body['finish_reason']}): {usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens"
        f" in {counted(stream.pieces, 'piece')}; prefill {timings.get('prefill_ms', 0):.0f} ms,"
        f" decode {timings.get('decode_ms', 0):.0f} ms"
    )


_REPLIES: dict[str, Callable[[dict[str, Any], _Stream], str]] = {
    "accepted": lambda body, _: "",
    "progress": lambda body, _: f": {body['phase']} {body.get('done', 0)}/{body.get('total', 0)}",
    "end": _ended,
    "failed": lambda body, _: printable(f": {body['error']['reason']}: {without_secrets(body['error']['message'])}"),
}


def _progress(body: dict[str, Any]) -> str:
    total = f"{size(body.get('downloaded_bytes', 0))}/{size(body['total_bytes'])}" if body.get("total_bytes") else ""
    return " ".join(part for part in (body["model"], body["phase"], total, body.get("note") or "") if part)


def _record(body: dict[str, Any]) -> str:
    reason = f" ({body['reason']})" if body.get("reason") else ""
    tries = counted(body["attempts"], "attempt")
    return f"{body['model']} {body['status']}{reason} after {body['total_ms']:.0f} ms, {tries}"


_TELLERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "llmlb.infer.cancel.v1": lambda body: "cancel" + (f" attempt {body['attempt'] + 1}" if body.get("attempt") else ""),
    "llmlb.pull.task.v1": lambda body: f"pull {body['model']} (task {body['task_id']})",
    "llmlb.pull.progress.v1": _progress,
    "llmlb.request.record.v1": _record,
    "llmlb.event.node_state_changed.v1": lambda body: (
        f"{body['name']}: {body.get('before') or 'new'} → {body['after']}, {body['reason']}"
    ),
    "llmlb.event.task_changed.v1": lambda body: (
        f"{body['task']['model']} on {body['node_name']}: {body['task']['status']}"
    ),
    "llmlb.node.identify.v1": lambda body: f"{body['name']} asks who has its id",
}


def _plainly(seen: Seen, body: dict[str, Any]) -> str:
    """Of what has no words of its own: the type, and the model if it has one."""
    name = str(seen.type).removeprefix("llmlb.").rsplit(".v", 1)[0]
    return f"{name} {seen.model}" if seen.model else f"{name} ({size(seen.size_bytes)})"
