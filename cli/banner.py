"""The start-up block of a serving process, and the lines in it that somebody may paste. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from llmlb.bus.settings import NODE_PORT, ROUTER_PORT, Settings
from llmlb.router.gateway.peers import is_loopback

MODELS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Part:
    """A gateway of this process."""

    role: str
    bind: str
    port: int
    node_id: str | None = None
    has_users: bool = True


@dataclass(frozen=True, slots=True)
class Begun:
    """What runs now. ``models``: name and aliases, the one to try first at the beginning."""

    title: str
    version: str
    parts: Sequence[Part]
    bus: str
    owns_bus: bool
    gpus: Sequence[str]
    models: Sequence[tuple[str, Sequence[str]]]
    program: str = "llmlb"


def local(bind: str) -> str:
    """An address of this machine that reaches what listens there."""
    known = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}
    return known.get(bind) or (f"[{bind}]" if ":" in bind else bind)


def block(begun: Begun, settings: Settings) -> str:
    """Addresses, bus, GPU, models, and what to do next."""
    lines = ["", f"llmlb {begun.version}: {begun.title} is ready"]
    lines.append(f"  bus     {begun.bus}{' (started here)' if begun.owns_bus else ''}")
    nodes = [part for part in begun.parts if part.role == "node"]
    for part in begun.parts:
        node = f"   id {part.node_id[:12]}" if part.node_id else ""
        lines.append(f"  {part.role:<7} http://{local(part.bind)}:{part.port}/v1{node}")
    if nodes:
        lines.append(f"  GPU     {', '.join(begun.gpus) or 'none: models run on the CPU'}")
    lines.append(f"  models  {_models(begun)}")
    first = begun.parts[0]
    name = _short(begun.models[0]) if begun.models else None
    if name is not None:
        lines += ["", "Ask it:", curl(f"{local(first.bind)}:{first.port}", name)]
    if name is not None and nodes:
        prefix = "" if nodes[0].port == NODE_PORT else f"LLMLB_HOST=127.0.0.1:{nodes[0].port} "
        lines += ["", "Or talk to it:", f"  {prefix}{begun.program} node run {shlex.quote(name)}"]
    if not first.has_users:
        usual = first.role == "router" and first.port == ROUTER_PORT
        lines += first_admin(settings, first.bind, None if usual else first.port)
    return "\n".join([*lines, "", "Ctrl+C ends it.", ""])


def _short(model: tuple[str, Sequence[str]]) -> str:
    return model[1][0] if model[1] else model[0]


def _models(begun: Begun) -> str:
    if not begun.models:
        pulls = any(part.role == "node" for part in begun.parts)
        return f"none yet{'; get one with: llmlb node pull OWNER/MODEL' if pulls else ''}"
    shown = ", ".join(name for name, _ in begun.models[:MODELS_SHOWN])
    more = len(begun.models) - MODELS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def ending(drain_s: float) -> str:
    """What is said when the process is told to stop."""
    return (
        f"Ending: nothing new is taken, running requests may take up to {drain_s:.0f} s more. "
        "Ctrl+C again ends at once."
    )


def curl(address: str, model: str) -> str:
    question = '[{"role": "user", "content": "What is the capital of Japan?"}]'
    body = f'{{"model": "{model}", "temperature": 0, "messages": {question}}}'
    return f"  curl http://{address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def first_admin(settings: Settings, bind: str, port: int | None) -> list[str]:
    """How to let others in while nobody exists; nothing where nobody else could come. ``port`` None: the usual one."""
    if settings.auth == "off" or is_loopback(bind) or bind == "localhost":
        return []
    prefix = "" if port is None else f"LLMLB_HOST=127.0.0.1:{port} "
    return [
        "",
        "Other machines need an API key or a login. To make the first admin, on this machine:",
        f"  {prefix}llmlb router user add NAME --admin",
    ]
