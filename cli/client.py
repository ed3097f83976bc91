"""A gateway, for commands: JSON in, JSON out, errors as :mod:`llmlb.bus.errors`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from llmlb.bus.errors import BY_REASON, LlmlbError
from llmlb.bus.settings import NODE_PORT, ROUTER_PORT, Settings
from llmlb.cli.foreign import page_trouble
from llmlb.cli.http_wire import Answer, Wire
from llmlb.cli.render import printable
from llmlb.cli.sse_client import SseReader
from llmlb.cli.versions import mismatch

READ_TIMEOUT_S = 75.0
"""Longer than the longest wait of a gateway (60 s, for a stop), so that its own answer comes first."""
STREAM_SILENCE_S = 300.0


def _address(given: str, port: int) -> SplitResult:
    """The address of a gateway from what somebody has written: a port and a scheme may be missing, an address that
    servers listen on stands for this machine, and a base address of the API (``…/v1``) for its gateway."""
    url = urlsplit(given if "://" in given else f"http://{given}")
    path = re.sub(r"/+(v[01])?/*$", "", url.path)
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(url.hostname or "")
    name = here or url.netloc.rpartition("@")[2]
    if here and url.port:
        name = f"{here}:{url.port}"
    if url.scheme == "http" and not url.port:
        name = f"{name.rstrip(':')}:{port}"
    user = url.netloc.rpartition("@")[0]
    return url._replace(netloc=f"{user}@{name}" if user else name, path=path, query="", fragment="")


class GatewayClient:
    """One gateway. ``role`` decides the default address and what to say when nothing answers there."""

    def __init__(self, settings: Settings, role: str) -> None:
        port = NODE_PORT if role == "node" else ROUTER_PORT
        url = _address(settings.host or f"127.0.0.1:{port}", port)
        self.base = url.geturl()
        # What is shown to people: without the name and password that an address may hold.
        self.address = url.netloc.rpartition("@")[2]
        self._role = role
        given = "" if settings.host is None else ", or mend LLMLB_HOST, which names this address"
        self._wire = Wire(url, self.address, f"Start it with: llmlb {role} serve{given}")
        self._warned = False
        if settings.api_key is not None:
            # The other header is taken when the address has a name and password, which are for a proxy.
            self._wire.headers["x-api-key"] = settings.api_key

    def login(self, name: str, password: str) -> None:
        """From now on as that user, instead of the API key. Raises as :meth:`post`."""
        answer = self._wire.ask("POST", "/v0/auth/login", {"name": name, "password": password}, READ_TIMEOUT_S)
        csrf = self._with("csrf_token", self._object(answer))["csrf_token"]
        self._wire.headers.pop("x-api-key", None)
        self._wire.headers |= {"Cookie": "; ".join(answer.cookies), "X-CSRF-Token": csrf}

    def hurry(self, timeout_s: float) -> None:
        """Give a server so long to take the connection; usually it has 5 s."""
        self._wire.connect_timeout_s = timeout_s

    def close(self) -> None:
        """Let the connection go. A later request opens another one."""
        self._wire.close()

    def get(self, path: str, *, has: str, timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
        """GET a JSON object with the field ``has``.

        Raises Unreachable, the error that the gateway answered, or LlmlbError for another kind of server.
        """
        return self._with(has, self._object(self._wire.ask("GET", path, None, timeout_s)))

    def rows(self, path: str, field: str, *, has: str, timeout_s: float = READ_TIMEOUT_S) -> list[dict[str, Any]]:
        """GET a list of objects, each with the field ``has``. Raises as :meth:`get`."""
        rows = self.get(path, has=field, timeout_s=timeout_s)[field]
        return [self._with(has, row) for row in (rows if isinstance(rows, list) else [None])]

    def post(self, path: str, body: dict[str, Any], *, has: str) -> dict[str, Any]:
        """POST a JSON object, get one with the field ``has``. Raises as :meth:`get`."""
        return self._with(has, self._object(self._wire.ask("POST", path, body, READ_TIMEOUT_S)))

    def put(self, path: str, body: dict[str, Any], *, has: str) -> dict[str, Any]:
        """PUT a JSON object, get one with the field ``has``. Raises as :meth:`get`."""
        return self._with(has, self._object(self._wire.ask("PUT", path, body, READ_TIMEOUT_S)))

    def delete(self, path: str, *, has: str) -> dict[str, Any]:
        """DELETE, get a JSON object with the field ``has``. Raises as :meth:`get`."""
        return self._with(has, self._object(self._wire.ask("DELETE", path, None, READ_TIMEOUT_S)))

    def model_path(self, model: str) -> str:
        """``/v0/models/<model>`` with what a path can't hold quoted."""
        return "/v0/models/" + quote(model, safe="/:")

    def task_path(self, task: str) -> str:
        """``/v0/tasks/<id or model>``; an address stays one part, so that nobody tidies its two slashes up."""
        return "/v0/tasks/" + quote(task, safe=":")

    def _with(self, field: str, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict) or field not in body:
            raise LlmlbError(f"the answer of {self.address} has no {field!r}: {self._another}")
        return body

    @property
    def _another(self) -> str:
        return f"it is not a {self._role}'s gateway, or another version"

    def _object(self, answer: Answer) -> dict[str, Any]:
        try:
            body = json.loads(answer.body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise LlmlbError(page_trouble(answer.status, answer.body, self.address))
        self._compare(answer.version)
        if answer.status >= 400:
            raise self._error(body, answer.status)
        return body

    def _compare(self, version: str | None) -> None:
        """Warn once of a server that is much newer or older; one that does not say its version is not judged."""
        warning = mismatch(version, self.address) if version else None
        if warning and not self._warned:
            self._warned = True
            print(f"Warning: {printable(warning)}", file=sys.stderr)

    def _error(self, body: dict[str, Any], status: int) -> LlmlbError:
        error = body.get("error")
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return LlmlbError(f"{self.address} is not a llmlb gateway (status {status})")
        # What a route does not find is told with the parameter that names it.
        if error.get("code") in ("not_found", "method_not_allowed") and not error.get("param"):
            return LlmlbError(f"{self.address} does not know this command: {self._another}")
        return BY_REASON.get(str(error.get("code")), LlmlbError)(error["message"])

    @contextlib.contextmanager
    def stream(
        self, path: str, body: dict[str, Any], on_comment: Callable[[str], None] | None = None
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """POST, and read the answer's events as JSON objects, ``[DONE]`` left out; ``on_comment`` gets the comments.

        Leaving the context closes the connection, and with it the work on the node. Raises as :meth:`get`, and
        LlmlbError for an error event or a stream that ends without a finish reason and ``[DONE]``.
        """
        with self._wire.stream(path, body, STREAM_SILENCE_S) as answer:
            if isinstance(answer, Answer):
                self._with("choices", self._object(answer))
                raise LlmlbError(f"the answer of {self.address} is no stream of events: {self._another}")
            yield self._events(answer, SseReader(on_comment))

    def _events(self, pieces: Iterator[bytes], reader: SseReader) -> Iterator[dict[str, Any]]:
        finished = False
        for piece in pieces:
            for event in reader.feed(piece):
                if event is None:
                    if finished:
                        return
                    raise LlmlbError("the answer ended early: it has no finish reason")
                if "error" in event:
                    raise self._error(event, 200)
                finished = finished or any(choice.get("finish_reason") for choice in event.get("choices", []))
                yield event
        raise LlmlbError("the answer ended early: the connection closed before its end")
