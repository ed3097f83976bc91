"""One place that configures logging: ``time LEVEL logger event key=value …`` on standard output.

Prompts and completions never go into a log. The id of the HTTP request at hand comes from a context variable.
"""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)


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
        return line


def configure(*, debug: bool) -> None:
    """Set up the root logger of this process. Called once, by the process's entry point."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(KeyValueFormatter())
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
