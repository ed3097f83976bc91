"""One place that configures logging: ``time LEVEL logger event key=value …`` on standard output, or JSON.

Prompts and completions never go into a log, and what looks like a secret is cut out of each line. The id of the HTTP
request at hand comes from a context variable.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)


form_in_use = "text"
"""Of this process's log; handed on to its engine workers, which write into the same output."""

_SECRETS = (
    (re.compile(r"://[^@/\s]*@"), "://****@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_****"),
    (re.compile(r"\bsk_[A-Za-z0-9_-]{8,}"), "sk_****"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ****"),
)
_KEY = re.compile(r"(?:^| )(\w+)=")
_CONVERSION = re.compile(r"%[-+ #0-9.]*[a-zA-Z]")
_OURS = ("time", "level", "logger", "event", "message")


def without_secrets(text: str) -> str:
    """The text without what looks like a password in an address, a hub token, an API key or an HTTP credential."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class KeyValueFormatter(logging.Formatter):
    """``2026-11-21T04:43:15.042Z INFO  node.agent model_loaded model=smollm2 seconds=1.92``"""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        name = record.name.removeprefix("llmlb.")
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname:<7} {name} {record.getMessage()}"
        if (request_id := request_id_var.get()) is not None:
            line += f" http_request={request_id}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return without_secrets(line)


class JsonFormatter(logging.Formatter):
    """One object a line: ``time``, ``level``, ``logger``, ``event`` and the event's own keys, which never take those.

    A text that is no event (a library's) is ``message``; a traceback is ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("llmlb."),
            **_fields(record),
        }
        if (request_id := request_id_var.get()) is not None:
            line["http_request"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: _plain(value) for key, value in line.items()}, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """``event`` and its keys, where the text of the log call has that form."""
    event, _, rest = str(record.msg).partition(" ")
    values = list(record.args) if isinstance(record.args, tuple) else []
    if record.args and not values:
        return {"message": record.getMessage()}
    if not re.fullmatch(r"[a-z][a-z0-9_]*", event) or len(_CONVERSION.findall(rest)) != len(values):
        return {"message": record.getMessage()}
    said, *pairs = _KEY.split(rest)
    found: dict[str, object] = {"event": event}
    if said:
        found["message"] = _filled(said, values)
    for key, form in zip(pairs[::2], pairs[1::2], strict=True):
        found[f"{key}_" if key in _OURS else key] = _filled(form, values)
    return found


def _filled(form: str, values: list[object]) -> object:
    """``form`` with the next of the values in it; one that stands alone keeps its type."""
    mine = [values.pop(0) for _ in _CONVERSION.findall(form)]
    if len(mine) == 1 and _CONVERSION.fullmatch(form) and isinstance(mine[0], bool | int | float):
        return mine[0]
    return form % tuple(mine)


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | None) else without_secrets(str(value))


def configure(*, debug: bool, form: str = "text") -> None:
    """Set up the root logger of this process. Called once, by the process's entry point. ``form``: text or json."""
    global form_in_use
    form_in_use = form
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if form == "json" else KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("llmlb").setLevel(logging.DEBUG if debug else logging.INFO)
    # httpx and httpx2 (huggingface_hub's) write every address, and the signed ones of a hub are secrets.
    for chatty in ("nats", "faststream", "asyncio", "httpx", "httpx2", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Sanic warns at each start that it is not in its debug mode.
    for name in ("sanic", "sanic.root", "sanic.error", "sanic.access", "sanic.server"):
        logging.getLogger(name).setLevel(logging.ERROR)
