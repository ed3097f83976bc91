"""The lines of the start-up block that somebody may paste. Pure."""

from __future__ import annotations

from llmlb.bus.settings import Settings
from llmlb.router.gateway.peers import is_loopback


def local(bind: str) -> str:
    return "127.0.0.1" if bind in ("0.0.0.0", "") else f"[{bind}]" if ":" in bind else bind


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
