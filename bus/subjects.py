"""Every subject, stream, bucket and queue group of the bus: built here, parsed here, nowhere else. Pure.

Model names never go into a subject: they hold ``/``, ``.`` and ``:``. Node ids are lower-case UUIDs without dashes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VERSION = "v1"
ROOT = f"llmlb.{VERSION}"

STREAM_EVENTS = "LLMLB_EVENTS"
STREAM_REQUESTS = "LLMLB_REQUESTS"
STREAM_PULLS = "LLMLB_PULLS"
STREAM_PROGRESS = "LLMLB_PROGRESS"
STREAM_RESPONSES = "LLMLB_RESPONSES"

BUCKET_NODES = "llmlb-nodes"
BUCKET_MODELS = "llmlb-models"
BUCKET_SETTINGS = "llmlb-settings"
BUCKET_IDENTITY = "llmlb-identity"
BUCKET_BULK = "llmlb-bulk"
"""Object store of requests that are larger than a message."""

QUEUE_ROUTER = "llmlb-router"
"""Queue group of the routers: one of them answers each ``router.rpc`` request."""

NODE_OPS = ("list", "show", "ps", "stop", "remove", "pull", "tasks", "cancel_task")
ROUTER_OPS = (
    *("nodes", "models", "status", "approve", "change_node", "remove_node", "make_join_token"),
    *("hub_models", "register_model", "delete_model", "search_catalog", "download_model"),
    *("tasks", "cancel_task"),
)
EVENT_TOPICS = ("node", "model", "task")

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


def _node(node_id: str) -> str:
    if not _NODE_ID.fullmatch(node_id):
        raise ValueError(f"not a node id (32 lower-case hex digits): {node_id!r}")
    return node_id


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"not a subject token: {text!r}")
    return text


def is_node_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


def everything() -> str:
    """Every message of this version, but the inboxes of callers."""
    return f"{ROOT}.>"


def bucket_changes(bucket: str) -> str:
    """Every change of a bucket. Source: NATS ADR-8, ``$KV.<bucket>.<key>``."""
    return f"$KV.{bucket}.>"


BUCKETS = (BUCKET_NODES, BUCKET_MODELS, BUCKET_SETTINGS, BUCKET_IDENTITY)


def heartbeat(node_id: str) -> str:
    return f"{ROOT}.node.{_node(node_id)}.heartbeat"


def all_heartbeats() -> str:
    return f"{ROOT}.node.*.heartbeat"


def infer(node_id: str) -> str:
    return f"{ROOT}.node.{_node(node_id)}.infer"


def identify(node_id: str) -> str:
    """Whoever has this id answers here."""
    return f"{ROOT}.node.{_node(node_id)}.identify"


def cancel(node_id: str) -> str:
    return f"{ROOT}.node.{_node(node_id)}.cancel"


def node_rpc(node_id: str, op: str) -> str:
    if op not in NODE_OPS:
        raise ValueError(f"no such node operation: {op!r}")
    return f"{ROOT}.node.{_node(node_id)}.rpc.{op}"


def router_rpc(op: str) -> str:
    if op not in ROUTER_OPS:
        raise ValueError(f"no such router operation: {op!r}")
    return f"{ROOT}.router.rpc.{op}"


def event(topic: str) -> str:
    if topic not in EVENT_TOPICS:
        raise ValueError(f"no such event topic: {topic!r}")
    return f"{ROOT}.event.{topic}"


def all_events() -> str:
    return f"{ROOT}.event.>"


def request_record(node_id: str) -> str:
    return f"{ROOT}.request.{_node(node_id)}"


def all_request_records() -> str:
    return f"{ROOT}.request.*"


def pull(node_id: str) -> str:
    """The work queue of one node's pulls."""
    return f"{ROOT}.pull.{_node(node_id)}"


def all_pulls() -> str:
    return f"{ROOT}.pull.*"


def pull_consumer(node_id: str) -> str:
    """The durable consumer of one node on LLMLB_PULLS."""
    return f"pull-{_node(node_id)}"


def progress(node_id: str, task_id: str) -> str:
    return f"{ROOT}.progress.{_node(node_id)}.{_token(task_id)}"


def node_progress(node_id: str) -> str:
    """The progress of every task of one node."""
    return f"{ROOT}.progress.{_node(node_id)}.*"


def all_progress() -> str:
    return f"{ROOT}.progress.*.*"


def model_key(name: str) -> str:
    """The key of a model in the bucket llmlb-models. ``:`` is no character of a key, ``=`` none of a model's name."""
    return name.replace(":", "=")


def model_name(key: str) -> str:
    """The model of a key of that bucket."""
    return key.replace("=", ":")


JOIN_TOKENS = "join.*"
"""The keys of the join tokens in the bucket llmlb-settings."""


def join_token_key(token_id: str) -> str:
    return f"join.{_token(token_id)}"


PEOPLE_KEY = "people"
"""The key of the users and invitations in the bucket llmlb-identity."""
SECRET_KEY = "secret"
"""The key of what sessions are signed with, in the same bucket."""


def api_key_key(key_id: str) -> str:
    """The key of an API key's record in the bucket llmlb-identity."""
    return f"key.{_token(key_id)}"


def keys_used() -> str:
    """Where gateways tell each other what API keys with limits have used."""
    return f"{ROOT}.gateway.keys"


def logins_tried() -> str:
    """Where gateways tell each other of attempts to log in."""
    return f"{ROOT}.gateway.logins"


def gateway_says(group: str) -> str:
    """Where the processes of one gateway tell each other how they are."""
    return f"{ROOT}.gateway.{_token(group)}.says"


def gateway_asks(group: str) -> str:
    """Where one of them asks all."""
    return f"{ROOT}.gateway.{_token(group)}.asks"


def sessions_key(user_id: str) -> str:
    """The key of a user's sessions in the bucket llmlb-identity."""
    return f"sessions.{_token(user_id)}"


def response(response_id: str) -> str:
    """The stored answer of this id. Raises ValueError when it can't be one."""
    return f"{ROOT}.response.{_token(response_id)}"


def all_responses() -> str:
    return f"{ROOT}.response.*"


def reply(gateway_id: str, stream: str) -> str:
    """Where one gateway process reads the replies to one inference request."""
    return f"{ROOT}.reply.{_token(gateway_id)}.{_token(stream)}"


def all_replies(gateway_id: str) -> str:
    """The one wildcard subscription of a gateway process: 5 µs a chunk against 9 for a subscription a request."""
    return f"{ROOT}.reply.{_token(gateway_id)}.*"


def gateway_of(subject: str) -> str | None:
    """The gateway process that reads a subject of :func:`reply`; None for any other subject."""
    parts = subject.removeprefix(f"{ROOT}.reply.").split(".")
    return parts[0] if subject.startswith(f"{ROOT}.reply.") and len(parts) == 2 and _TOKEN.fullmatch(parts[0]) else None


def reply_stream(subject: str) -> str:
    """The ``stream`` a subject of :func:`reply` was built with."""
    return subject.rsplit(".", 1)[1]


@dataclass(frozen=True, slots=True)
class NodeSubject:
    """A parsed ``node`` subject: whose it is, and what (``heartbeat``, ``infer``, ``cancel``, ``rpc.list`` …)."""

    node_id: str
    what: str


def parse_node(subject: str) -> NodeSubject | None:
    """The parts of a ``llmlb.v1.node.<node>.…`` subject, or None for any other."""
    parts = subject.split(".", 4)
    if len(parts) != 5 or ".".join(parts[:3]) != f"{ROOT}.node" or not is_node_id(parts[3]) or not parts[4]:
        return None
    return NodeSubject(parts[3], parts[4])
