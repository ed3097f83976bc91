"""Names that a shell completes: ``llmlb __complete models|running|registered|nodes|shells``, one a line. Called at each
press of Tab, so without typer, with short timeouts, and silent whatever happens."""

from __future__ import annotations

from typing import Any

from llmlb.bus.errors import LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.render import printable

ANSWER_S = 1.0
SHORT_ID = 12


def _registered(row: dict[str, Any]) -> list[str]:
    return [*row.get("aliases", ()), row["id"]] if row.get("registered_at") is not None else []


def _models(row: dict[str, Any]) -> list[str]:
    return [*row.get("aliases", ()), row["name"]]


_KINDS = {
    "models": ("node", "/v0/models", "models", "name", _models),
    "running": ("node", "/v0/ps", "models", "name", lambda row: [row["name"]]),
    "registered": ("router", "/v0/models/hub", "models", "id", _registered),
    "nodes": ("router", "/v0/nodes", "nodes", "node_id", lambda row: [row["node_id"][:SHORT_ID]]),
}


def names(kind: str) -> list[str]:
    """Those the server knows now; none where there is no server, no such kind, or no right to see them."""
    if kind == "shells":
        from llmlb.cli.completion import SHELLS

        return list(SHELLS)
    if kind not in _KINDS:
        return []
    role, path, field, has, of_row = _KINDS[kind]
    try:
        gateway = GatewayClient(Settings.load(), role)
        gateway.hurry(ANSWER_S)
        rows = gateway.rows(path, field, has=has, timeout_s=ANSWER_S)
    except LlmlbError:
        return []
    found = dict.fromkeys(name for row in rows for name in of_row(row))
    return [name for name in found if printable(name) == name and not any(c in name for c in " \t'\"$`\\;|&<>()*?")]
