"""Clients that stream over HTTP and check what they get, in a thread with a loop of its own.

What a client saw is one of: ``ok`` (a whole answer, word for word), ``refused`` (an HTTP error before any text),
``failed`` (a part of the answer, then one typed error), ``broken`` (the connection ended), and what must never be:
``wrong`` (other text than expected), ``silent`` (an end without ``[DONE]`` and without an error) and ``stuck``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from llmlb.bus.messages.infer import ChatMessage, InferRequest, Sampling
from llmlb.node.engine.simulated_script import Script

STUCK_S = 90.0
"""An answer that is not over by then is stuck."""
CLIENT_PAUSE_S = 0.1
"""Of a client in a row of requests, after one that did not go well."""

Verdict = Literal["ok", "refused", "failed", "broken", "wrong", "silent", "stuck"]


def simulated_text(text: str, tokens: int, seed: int) -> str:
    """What any simulated node answers to a one-message chat."""
    request = InferRequest(
        request_id="r",
        model="m",
        kind="chat",
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(seed=seed),
    )
    return Script.of(request).text(tokens)


@dataclass
class Seen:
    """What one client saw. Times are of the monotonic clock."""

    expected: str | None
    """None: not known; then any text is right."""
    began: float
    url: str = ""
    request_id: str = ""
    ended: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    reasoning: str = ""
    calls: str = ""
    """Names and arguments of tool calls, as they came."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    done: bool = False
    broken: str = ""
    stuck: bool = False
    times: list[float] = field(default_factory=list)
    """When each piece of text came."""

    @property
    def code(self) -> str:
        """Of the typed error, or empty."""
        return str(self.errors[0]["code"]) if self.errors else ""

    @property
    def verdict(self) -> Verdict:
        if self.stuck:
            return "stuck"
        if self.expected is not None and not self.expected.startswith(self.text):
            return "wrong"
        if self.status not in (0, 200):
            return "refused" if self.code and not self.text else "wrong"
        if self.errors:
            return "failed" if len(self.errors) == 1 and not self.done else "wrong"
        if self.done:
            return "ok" if self.expected in (None, self.text) else "wrong"
        return "broken" if self.broken else "silent"

    def gap_s(self, after: float) -> float:
        """The longest time between two pieces of text of which the second came after ``after``."""
        pairs = itertools.pairwise(self.times)
        return max((second - first for first, second in pairs if second > after), default=0.0)

    def line(self, line: str) -> None:
        """One line of the event stream."""
        if line.startswith(":"):
            self.comments.append(line[1:].strip())
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.done = True
            return
        event = json.loads(line[6:])
        if "error" in event:
            self.errors.append(event["error"])
        for choice in event.get("choices", []):
            delta = choice["delta"]
            self.text += delta.get("content") or ""
            self.reasoning += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                self.calls += (call["function"].get("name") or "") + call["function"]["arguments"]
            if any(delta.get(kind) for kind in ("content", "reasoning_content", "tool_calls")):
                self.times.append(time.monotonic())


class Traffic:
    """Clients of the gateways that ``urls`` names at that moment; they take turns among them."""

    def __init__(
        self,
        urls: Callable[[], list[str]],
        model: str,
        *,
        enter: Callable[[], None] = lambda: None,
        stuck_s: float = STUCK_S,
    ) -> None:
        """``enter`` is called in the thread before anything else: to go into a network namespace."""
        self.model = model
        self.seen: list[Seen] = []
        """Every answer that is over, of :meth:`keep` and :meth:`ask`."""
        self.under_way: list[Seen] = []
        self._urls = urls
        self._stuck_s = stuck_s
        self._numbers = itertools.count()
        self._keeping: list[Future[None]] = []
        self._stop = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._client: httpx.AsyncClient | None = None
        self._thread = threading.Thread(target=self._run, args=(enter,), name="traffic", daemon=True)
        self._thread.start()

    def _run(self, enter: Callable[[], None]) -> None:
        enter()
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _stream(self, body: dict[str, Any], headers: dict[str, str], expected: str | None) -> Seen:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self._client = httpx.AsyncClient(timeout=httpx.Timeout(self._stuck_s, connect=10), limits=limits)
        urls = self._urls()
        seen = Seen(expected, time.monotonic(), urls[next(self._numbers) % len(urls)])
        self.under_way.append(seen)
        try:
            async with asyncio.timeout(self._stuck_s):
                url = f"{seen.url}/v1/chat/completions"
                async with self._client.stream("POST", url, json=body, headers=headers) as response:
                    seen.status, seen.headers = response.status_code, dict(response.headers)
                    seen.request_id = response.headers.get("x-request-id", "")
                    if response.status_code != 200:
                        seen.errors.append(json.loads(await response.aread())["error"])
                    else:
                        async for line in response.aiter_lines():
                            seen.line(line)
        except TimeoutError:
            seen.stuck = True
        except httpx.HTTPError as error:
            seen.broken = repr(error)
        finally:
            seen.ended = time.monotonic()
            self.under_way.remove(seen)
            self.seen.append(seen)
        return seen

    def send(self, body: dict[str, Any], *, key: str = "", expected: str | None = None) -> Future[Seen]:
        """Stream the answer to this body. Its future ends with the answer; cancelling it is a client that goes away."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        whole = {"model": self.model, "stream": True, **body}
        return asyncio.run_coroutine_threadsafe(self._stream(whole, headers, expected), self._loop)

    def ask(self, tokens: int, *, key: str = "", model: str = "") -> Future[Seen]:
        """A question of its own for a simulated node, whose answer has so many tokens."""
        text, seed = f"question {uuid.uuid4().hex}", 7
        messages = [{"role": "user", "content": text}]
        body = {"model": model or self.model, "messages": messages, "max_tokens": tokens, "seed": seed}
        return self.send(body, key=key, expected=simulated_text(text, tokens, seed))

    def keep(self, clients: int, tokens: int) -> None:
        """From now on so many clients ask one question after the other, until :meth:`finish`."""
        for _ in range(clients):
            self._keeping.append(asyncio.run_coroutine_threadsafe(self._client_of_its_own(tokens), self._loop))

    async def _client_of_its_own(self, tokens: int) -> None:
        while not self._stop.is_set():
            seen = await asyncio.wrap_future(self.ask(tokens))
            if seen.verdict != "ok":
                await asyncio.sleep(CLIENT_PAUSE_S)

    def finish(self) -> list[Seen]:
        """No new questions; everything that was seen, when the last answer is over. For :meth:`keep` only."""
        self._stop.set()
        for one in self._keeping:
            one.result(self._stuck_s + 10)
        return self.seen

    def close(self) -> None:
        """End what runs, and the thread. May be called twice."""
        self._stop.set()
        if self._loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()


def verdicts(seen: Iterable[Seen]) -> dict[str, int]:
    """How many saw what; errors with their code, such as ``failed bus_unavailable``."""
    return dict(Counter(f"{one.verdict} {one.code}".strip() for one in seen))
