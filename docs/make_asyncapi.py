"""Writes docs/asyncapi.json: the bus as FastStream's AsyncAPI, from the handlers that the processes register.

``make docs``. With ``--print`` the document goes to standard output instead (tests compare it with the file).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from faststream.nats import NatsBroker
from faststream.specification.asyncapi import AsyncAPI
from pydantic.json_schema import models_json_schema

import llmlb
from llmlb.bus import subjects
from llmlb.bus.connection import Bus
from llmlb.bus.messages.base import Message
from llmlb.bus.messages.errors import RpcFailed
from llmlb.bus.messages.events import (
    ClusterModelReady,
    ClusterModelRegistered,
    ClusterModelRemoved,
    ClusterTaskChanged,
    NodeStateChanged,
)
from llmlb.bus.messages.gateways import AskGatewayProcess, GatewayProcess
from llmlb.bus.messages.identity import KeysUsed, LoginTried
from llmlb.bus.messages.infer import (
    Accepted,
    CancelRequest,
    Delta,
    End,
    Failed,
    InferRequest,
    Progress,
)
from llmlb.bus.messages.nodes import Heartbeat, IdentifyNode
from llmlb.bus.messages.pulls import PullProgress, PullTask
from llmlb.bus.messages.requests import RequestRecord
from llmlb.bus.messages.responses import StoredResponse
from llmlb.bus.settings import Settings
from llmlb.node.agent import NodeAgent
from llmlb.node.store.catalog import Catalog
from llmlb.node.store.installed import Store
from llmlb.router.control import RouterControl
from llmlb.router.fleet import Fleet
from llmlb.router.history import RequestCount
from llmlb.router.hub.hub import ModelHub
from llmlb.router.live_feed import KINDS, PROTOCOL

OUT = Path(__file__).parent / "asyncapi.json"
NODE = "0" * 32
"""Stands for any node id in subjects while the document is made; the document says {node}."""

TASK = "f" * 16

DATA_PLANE: list[tuple[str, type[Message]]] = [
    (subjects.heartbeat(NODE), Heartbeat),
    (subjects.identify(NODE), IdentifyNode),
    (subjects.infer(NODE), InferRequest),
    (subjects.cancel(NODE), CancelRequest),
    (subjects.event("node"), NodeStateChanged),
    (subjects.event("task"), ClusterTaskChanged),
    (subjects.request_record(NODE), RequestRecord),
    (subjects.pull(NODE), PullTask),
    (subjects.progress(NODE, TASK), PullProgress),
    (subjects.response("RESPONSE"), StoredResponse),
    (subjects.keys_used(), KeysUsed),
    (subjects.logins_tried(), LoginTried),
    (subjects.gateway_says("GATEWAY"), GatewayProcess),
    (subjects.gateway_asks("GATEWAY"), AskGatewayProcess),
]
REPLIES: tuple[type[Message], ...] = (Accepted, Progress, Delta, End, Failed)
REPLY = subjects.reply("GATEWAY", "STREAM")
OF_MODELS: tuple[type[Message], ...] = (ClusterModelRegistered, ClusterModelReady, ClusterModelRemoved)
RPC_REPLY = "rpc.reply"
_TEXT, _YES = {"type": "string"}, {"type": "boolean"}
_TEXTS = {"type": "array", "items": _TEXT}
SOCKET_ONLY: dict[str, dict[str, Any]] = {
    "hello": {
        "protocol": {"const": PROTOCOL},
        "version": {**_TEXT, "description": "of the router"},
        "stream": {"type": ["string", "null"], "description": "what the ids are of; goes with `after`"},
        "bus": {**_YES, "description": "whether the bus is there"},
        "types": {**_TEXTS, "description": "what will be sent"},
    },
    "reset": {"reason": _TEXT, "read": {**_TEXTS, "description": "lists to read anew"}, "stream": _TEXT},
    "bus": {"connected": _YES},
}
SOCKET_TEXTS = {
    "hello": "The first message.",
    "reset": "What was missed is not there any more: read the lists anew, and go on after this id.",
    "bus": "The bus is away, or back; the socket stays.",
    "task_changed": "A download has another status; or, without id, how far it is: at most twice a second.",
}


def _buses() -> list[Bus]:
    settings = Settings.load({}, embedded_bus=False, home=Path(tempfile.gettempdir()))
    router, node = Bus(settings, "router"), Bus(settings, "node")
    fleet = Fleet(router)
    RouterControl(fleet, cast(RequestCount, None)).register(router)  # nothing is asked of it
    ModelHub(router, fleet).register_rpc()
    NodeAgent(settings, node, Catalog([]), NODE, store=Store(settings.home / "models")).register()
    return [router, node]


def _data_plane() -> NatsBroker:
    data = NatsBroker()
    for subject, message in DATA_PLANE:
        data.publisher(subject, title=subject, description=message.__doc__, schema=message)
    for subject, messages in ((REPLY, REPLIES), (subjects.event("model"), OF_MODELS)):
        for message in messages:
            title = f"{subject}.{message.__name__}"
            data.publisher(subject, title=title, description=message.__doc__, schema=message)
    return data


def _add_socket(body: dict[str, Any]) -> None:
    """``/v0/ws`` of a router's gateway: the same events, in an envelope. What it is asked with is in openapi.json."""
    body["servers"]["gateway"] = {"host": "127.0.0.1:32768", "protocol": "ws"}
    payloads = {name: {"$ref": f"#/components/schemas/{cls.__name__}"} for cls, name in KINDS.items()} | {
        name: {"type": "object", "required": list(fields), "properties": fields} for name, fields in SOCKET_ONLY.items()
    }
    messages = {}
    for name, data in payloads.items():
        body["components"]["messages"][f"ws:{name}"] = {
            "title": name,
            "description": SOCKET_TEXTS.get(name, "An event of the bus, without its `type` and `sent_at`."),
            "payload": {
                "type": "object",
                "required": ["v", "id", "type", "at", "data"],
                "properties": {
                    "v": {"const": PROTOCOL},
                    "id": {"type": ["integer", "null"], "description": "the stream's number; null: not kept"},
                    "type": {"const": name},
                    "at": {"type": "number", "description": "Unix seconds"},
                    "data": data,
                },
            },
        }
        messages[name] = {"$ref": f"#/components/messages/ws:{name}"}
    body["channels"]["ws"] = {
        "address": "/v0/ws",
        "description": "One WebSocket a client. Clients send nothing. See docs/api.md, Events.",
        "messages": messages,
        "servers": [{"$ref": "#/servers/gateway"}],
        "bindings": {"ws": {"method": "GET"}},
    }
    body["operations"]["ws"] = {
        "action": "send",
        "channel": {"$ref": "#/channels/ws"},
        "messages": [{"$ref": f"#/channels/ws/messages/{name}"} for name in messages],
    }


def _add_answers(body: dict[str, Any], buses: list[Bus]) -> None:
    """FastStream documents what handlers take, not what they answer: add the replies."""
    operations = [operation for bus in buses for operation in bus.operations]
    answers = sorted({answer for _, _, answer in operations} | {RpcFailed}, key=lambda cls: cls.__name__)
    _, schemas = models_json_schema(
        [(answer, "serialization") for answer in answers], ref_template="#/components/schemas/{model}"
    )
    body["components"]["schemas"] = {**schemas["$defs"], **body["components"]["schemas"]}
    messages = {}
    for answer in answers:
        name = answer.__name__
        body["components"]["messages"][f"{RPC_REPLY}:{name}"] = {
            "title": name,
            "description": answer.__doc__,
            "payload": {"$ref": f"#/components/schemas/{name}"},
        }
        messages[name] = {"$ref": f"#/components/messages/{RPC_REPLY}:{name}"}
    body["channels"][RPC_REPLY] = {
        "address": None,
        "description": "The inbox that NATS makes for each request.",
        "messages": messages,
        "servers": [{"$ref": "#/servers/bus"}],
    }
    for subject, _, answer in operations:
        body["operations"][subject]["reply"] = {
            "channel": {"$ref": f"#/channels/{RPC_REPLY}"},
            "messages": [{"$ref": f"#/channels/{RPC_REPLY}/messages/{cls.__name__}"} for cls in (answer, RpcFailed)],
        }


def _replace(text: str) -> str:
    for what, name in ((NODE, "{node}"), ("GATEWAY", "{gateway}"), ("STREAM", "{stream}"), (TASK, "{task}")):
        text = text.replace(what, name)
    return text


def document() -> str:
    """The document, as JSON with sorted keys."""
    buses = _buses()
    spec = AsyncAPI(
        *(bus.control for bus in buses),
        _data_plane(),
        title="llmlb bus",
        version=llmlb.__version__,
        description="What crosses the NATS bus of a llmlb cluster. Subjects: docs/bus.md.",
        schema_version="3.0.0",
    ).to_specification()
    body: dict[str, Any] = json.loads(spec.to_json())
    body["servers"] = {"bus": {"host": "127.0.0.1:4222", "protocol": "nats"}}
    for channel in body.get("channels", {}).values():
        channel["servers"] = [{"$ref": "#/servers/bus"}]
    _add_answers(body, buses)
    _add_socket(body)
    return _replace(json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False)) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(document())
    else:
        OUT.write_text(document())
        print(f"wrote {OUT.name}")
