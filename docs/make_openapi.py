"""Writes docs/openapi.json and docs/openapi.node.json: the HTTP API of a router's gateway, and of a node's.

``make docs``. With ``--print router`` or ``--print node`` that document goes to standard output instead (tests compare
it with the file). A running gateway serves its own at ``/openapi.json``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, cast

import llmlb
from llmlb.bus.settings import Settings
from llmlb.router.gateway import openapi
from llmlb.router.gateway.app import build_app
from llmlb.router.gateway.ports import Gateway

HERE = Path(__file__).parent
Role = Literal["router", "node"]
FILES: dict[Role, Path] = {"router": HERE / "openapi.json", "node": HERE / "openapi.node.json"}


def document(role: Role) -> str:
    """The document, as JSON. The application is only looked at: nothing is asked of what it works with."""
    nothing: Any = None
    gateway = Gateway(
        role=role,
        settings=Settings.load({}, embedded_bus=False, home=Path(tempfile.gettempdir())),
        version=llmlb.__version__,
        inference=nothing,
        models=nothing,
        readiness=nothing,
        router_ops=None,
        node_ops=None,
        node_id=None,
    )
    return json.dumps(openapi.document(build_app(gateway)), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(document(cast(Role, sys.argv[-1])))
    else:
        for role, path in FILES.items():
            path.write_text(document(role))
            print(f"wrote {path.name}")
