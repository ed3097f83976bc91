"""HTTP to a gateway, for commands: JSON in, JSON out, errors as :mod:`llmlb.bus.errors`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from llmlb.bus.errors import BY_REASON, LlmlbError
from llmlb.bus.settings import NODE_PORT, ROUTER_PORT, Settings
from llmlb.cli.exit_codes import Unreachable
from llmlb.cli.sse_client import SseReader

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 75.0
"""Longer than the longest wait of a gateway (60 s, for a stop), so that its own answer comes first."""
STREAM_SILENCE_S = 300.0


class GatewayClient:
    """One gateway. ``role`` decides the default address and what to say when nothing answers there."""

    def __init__(self, settings: Settings, role: str) -> None:
        port = NODE_PORT if role == "node" else ROUTER_PORT
        given = settings.host or f"127.0.0.1:{port}"
        self.base = given.rstrip("/") if "://" in given else f"http://{given}"
        url = urlsplit(self.base)
        if url.scheme == "http" and not url.port:
            url = url._replace(netloc=f"{url.netloc}:{port}")
            self.base = url.geturl()
        # What is shown to people: without the name and password that an address may hold.
        self.address = url.netloc.rpartition("@")[2]
        self._role = role

    def _client(self) -> httpx.Client:
        import httpx

        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # No proxies out of the environment: gateways are on this machine or in its network.
        return httpx.Client(base_url=self.base, timeout=timeout, trust_env=False)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(
                f"cannot reach llmlb at {self.address}: {_why(error)}. Start it with: llmlb {self._role} serve"
            ) from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"llmlb at {self.address} does not answer") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"the connection to llmlb at {self.address} broke: {error}") from error

    def get(self, path: str, *, has: str) -> dict[str, Any]:
        """GET a JSON object with the field ``has``.

        Raises Unreachable, the error that the gateway answered, or LlmlbError for another kind of server.
        """
        with self._errors(), self._client() as client:
            return self._with(has, self._answer(client.get(path)))

    def rows(self, path: str, field: str, *, has: str) -> list[dict[str, Any]]:
        """GET a list of objects, each with the field ``has``. Raises as :meth:`get`."""
        rows = self.get(path, has=field)[field]
        return [self._with(has, row) for row in (rows if isinstance(rows, list) else [None])]

    def post(self, path: str, body: dict[str, Any], *, has: str) -> dict[str, Any]:
        """POST a JSON object, get one with the field ``has``. Raises as :meth:`get`."""
        with self._errors(), self._client() as client:
            return self._with(has, self._answer(client.post(path, json=body)))

    def model_path(self, model: str) -> str:
        """``/v0/models/<model>`` with what a path can't hold quoted."""
        return "/v0/models/" + quote(model, safe="/:")

    def _with(self, field: str, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict) or field not in body:
            raise LlmlbError(f"the answer of {self.address} has no {field!r}: {self._another}")
        return body

    @property
    def _another(self) -> str:
        return f"it is not a {self._role}'s gateway, or another version"

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise LlmlbError(f"{self.address} is not a llmlb gateway (status {response.status_code}, no JSON object)")
        if response.status_code >= 400:
            raise self._error(body, response.status_code)
        return body

    def _error(self, body: dict[str, Any], status: int) -> LlmlbError:
        error = body.get("error")
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return LlmlbError(f"{self.address} is not a llmlb gateway (status {status})")
        if error.get("code") in ("not_found", "method_not_allowed"):
            return LlmlbError(f"{self.address} does not know this command: {self._another}")
        return BY_REASON.get(str(error.get("code")), LlmlbError)(error["message"])

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """POST, and read the answer's events as JSON objects, ``[DONE]`` left out.

        Leaving the context closes the connection, and with it the work on the node. Raises as :meth:`get`, and
        LlmlbError for an error event or a stream that ends without a finish reason and ``[DONE]``.
        """
        import httpx

        with self._errors(), self._client() as client:
            timeout = httpx.Timeout(STREAM_SILENCE_S, connect=CONNECT_TIMEOUT_S)
            with client.stream("POST", path, json=body, timeout=timeout) as response:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    response.read()
                    self._with("choices", self._answer(response))
                yield self._events(response)

    def _events(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        reader = SseReader()
        finished = False
        for piece in response.iter_bytes():
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


def _why(error: Exception) -> str:
    """What kept a connection from being made, in words: ``connection refused``, ``Name or service not known``."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return "connection refused" if "refused" in text else text or type(error).__name__
