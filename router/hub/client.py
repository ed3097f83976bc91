"""Asks the hub for metadata: what there is, and what a repository holds. Never for a model's bytes.

The only file of the router that talks to a hub, and the one place that maps httpx's errors. Every call ends within its
deadline. A hub that refused or did not answer is left alone for a while, so that nobody waits for it again and again.

Source of routes and fields: the Hub API's OpenAPI document and huggingface_hub 2.4, ``hf_api.py`` (``list_models``,
``model_info``); paging by a Link header as in ``utils/_pagination.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx
import orjson

from llmlb.bus.errors import Forbidden, HubUnavailable, LlmlbError, ModelUnknown, Unauthenticated
from llmlb.bus.hub_names import Wanted, without_credentials
from llmlb.router.hub.answers import Batch, Repository, batch_of, repository_of

log = logging.getLogger("llmlb.router.hub.client")

ENDPOINT = "https://huggingface.co"
CONNECT_S = 3.0
CALL_S = 8.0
"""A whole call, from the wait for a connection to the last byte."""
CONNECTIONS = 50
"""A page of the catalog: its sizes are asked for at once, so that it takes two answers of the hub and not three."""
KEPT_S = 30.0
"""A connection without a request."""
MAX_BYTES = 32 * 1024 * 1024
"""Of one answer."""
MAX_REDIRECTS = 3
"""A repository that was renamed is answered by a redirect."""
QUIET_S = 3.0
"""After a hub did not answer."""
QUIET_MOST_S = 600.0
"""However long a hub says to wait."""
FIELDS = ("downloads", "likes", "lastModified", "sha", "siblings", "gated", "gguf", "tags")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes


class HubClient:
    """One hub. ``token`` None: without credentials. :meth:`close` it."""

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        *,
        call_s: float = CALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = (endpoint or ENDPOINT).rstrip("/")
        self.host = urlsplit(without_credentials(self.endpoint)).netloc
        self._token, self._call_s, self._clock = token, call_s, clock
        self._idle: asyncio.LifoQueue[httpx.AsyncClient | None] = asyncio.LifoQueue(CONNECTIONS)
        """A client a connection, None where none was made yet: one client with 50 connections looks at all of them for
        each answer, which took 0.5 to 1 s of CPU a page against 0.2 s (measured, httpx 0.28)."""
        for _ in range(CONNECTIONS):
            self._idle.put_nowait(None)
        self._made: list[httpx.AsyncClient] = []
        self._context: ssl.SSLContext | None = None
        self._making = asyncio.Lock()
        self._quiet_until, self._quiet_why = 0.0, ""
        self._said = ""

    async def close(self) -> None:
        made, self._made = self._made, []
        for client in made:
            await client.aclose()

    # What can be asked

    async def search(self, query: str, *, limit: int, cursor: str | None = None) -> Batch:
        """GGUF models, most downloaded first; ``cursor``: what the batch before gave. Raises HubUnavailable."""
        if cursor is None:
            params: list[tuple[str, str | int]] = [("filter", "gguf"), ("sort", "downloads"), ("direction", "-1")]
            params += [("limit", limit), *(("expand", field) for field in FIELDS)]
            if query:
                params.append(("search", query))
            url = str(httpx.URL(f"{self.endpoint}/api/models", params=params))
        else:
            url = cursor
        answer = await self._get(url)
        self._check(answer, None)
        batch = batch_of(self._json(answer))
        return Batch(batch.models, self._next(answer))

    async def repository(self, wanted: Wanted) -> Repository:
        """A repository with sizes and digests of its files at a commit.

        Raises HubUnavailable, ModelUnknown, Unauthenticated, Forbidden.
        """
        owner, model, revision = (quote(part, safe="") for part in (wanted.owner, wanted.model, wanted.revision))
        answer = await self._get(f"{self.endpoint}/api/models/{owner}/{model}/revision/{revision}?blobs=true")
        self._check(answer, wanted)
        found = repository_of(self._json(answer))
        if found is None:
            raise self._odd()
        return found

    async def counts(self, wanted: Wanted) -> tuple[int, int]:
        """(downloads of the last month, likes) of a repository. Raises as :meth:`repository`."""
        owner, model = quote(wanted.owner, safe=""), quote(wanted.model, safe="")
        answer = await self._get(f"{self.endpoint}/api/models/{owner}/{model}?expand=downloads&expand=likes")
        self._check(answer, wanted)
        found = repository_of(self._json(answer))
        if found is None:
            raise self._odd()
        return found.downloads, found.likes

    # How

    async def _get(self, url: str) -> _Answer:
        left_s = self._quiet_until - self._clock()
        if left_s > 0:
            raise self._unavailable(self._quiet_why, left_s)
        try:
            async with asyncio.timeout(self._call_s):
                client = await self._idle.get()
                try:
                    client = client or await self._client()
                    return await self._follow(client, url)
                finally:
                    self._idle.put_nowait(client)
        except TimeoutError as error:
            raise self._failed(f"{self.host} does not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            raise self.mapped(error) from error

    async def _follow(self, client: httpx.AsyncClient, url: str) -> _Answer:
        for _ in range(MAX_REDIRECTS):
            headers = {"Accept": "application/json"}
            if self._token is not None and self._is_ours(url):
                headers["Authorization"] = f"Bearer {self._token}"
            async with client.stream("GET", url, headers=headers) as response:
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["location"])
                    if not self._is_ours(url):
                        raise httpx.UnsupportedProtocol("it sends to another host for its metadata")
                    continue
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise httpx.StreamError("its answer is too large")
                return _Answer(response.status_code, response.headers, bytes(body))
        raise httpx.TooManyRedirects("it redirects without end")

    async def _client(self) -> httpx.AsyncClient:
        async with self._making:
            if self._context is None:
                # Reading the certificates takes 20 ms.
                self._context = await asyncio.to_thread(httpx.create_ssl_context)
        client = httpx.AsyncClient(
            verify=self._context,
            timeout=httpx.Timeout(self._call_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEPT_S),
        )
        self._made.append(client)
        return client

    def _is_ours(self, url: str) -> bool:
        ours, other = urlsplit(self.endpoint), urlsplit(url)
        return (ours.scheme, ours.hostname, ours.port) == (other.scheme, other.hostname, other.port)

    def _next(self, answer: _Answer) -> str | None:
        """Where the next batch is, by the Link header; None at the end, or when it is at another host."""
        for link in answer.headers.get_list("link", split_commas=False):
            for part in link.split(", <"):
                address, _, parameters = part.partition(">")
                if 'rel="next"' in parameters:
                    url = urljoin(f"{self.endpoint}/", address.strip().lstrip("<"))
                    return url if self._is_ours(url) else None
        return None

    def _json(self, answer: _Answer) -> Any:
        try:
            body = orjson.loads(answer.body)
        except orjson.JSONDecodeError as error:
            raise self._odd() from error
        self._said = ""
        return body

    # What went wrong

    def _check(self, answer: _Answer, wanted: Wanted | None) -> None:
        """Raises what a status stands for."""
        status = answer.status
        if status == 200:
            return
        if status == 429 or status >= 500:
            what = "limits the number of requests (429)" if status == 429 else f"answers {status}"
            raise self._failed(f"{self.host} {what}", _retry_after_s(answer.headers))
        if wanted is None:
            raise self._failed(f"{self.host} answers {status} to a search")
        raise self._refused(status, wanted)

    def _refused(self, status: int, wanted: Wanted) -> LlmlbError:
        page = f"{without_credentials(self.endpoint)}/{wanted.repo}"
        if status == 403:
            return Forbidden(f"{self.host} refuses access to {wanted.repo}: see {page}", param="repo")
        if status == 401 and self._token is not None:
            return Unauthenticated(f"{self.host} refuses the router's HF_TOKEN")
        if status == 404 and wanted.revision != "main":
            return ModelUnknown(f"{self.host} has no {wanted.repo} at revision {wanted.revision}", param="repo")
        if status in (401, 404, 410):
            return ModelUnknown(f"{self.host} has no model {wanted.repo}, or it is private", param="repo")
        return self._odd(f"{self.host} answers {status} for {wanted.repo}")

    def mapped(self, error: Exception) -> HubUnavailable:
        """A foreign error as ours; the hub is left alone for a while."""
        if isinstance(error, httpx.TimeoutException):
            return self._failed(f"{self.host} does not answer in time")
        if isinstance(error, httpx.TransportError | OSError):
            return self._failed(f"{self.host} can't be reached", detail=f"{type(error).__name__}: {error}")
        return self._failed(f"{self.host} answers in a way that is not understood", detail=repr(error))

    def _odd(self, text: str | None = None) -> HubUnavailable:
        return self._failed(text or f"{self.host} answers in a way that is not understood")

    def _failed(self, why: str, wait_s: float | None = None, detail: str | None = None) -> HubUnavailable:
        wait_s = min(QUIET_MOST_S, QUIET_S if wait_s is None else wait_s)
        self._quiet_until, self._quiet_why = self._clock() + wait_s, why
        if why != self._said:
            self._said = why
            log.warning("hub_unavailable why=%r wait_s=%.0f detail=%s", why, wait_s, detail)
        return self._unavailable(why, wait_s)

    def _unavailable(self, why: str, wait_s: float) -> HubUnavailable:
        error = HubUnavailable(f"{why}; try again later")
        error.retry_after_s = max(1, math.ceil(wait_s))
        return error


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds, from either form of Retry-After; None when it says nothing that can be used."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
