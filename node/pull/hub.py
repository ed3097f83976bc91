"""Access to the hub: what a repo holds, and where a file's bytes are. The only file that imports huggingface_hub.

It is used for addresses, metadata, credentials and errors. Not for bytes: its ``hf_hub_download`` deletes its partial
file when it fails. huggingface_hub blocks, so it runs in threads owned by `Hub`. Its ``HF_ENDPOINT`` and ``HF_TOKEN``
are not used, nor the token that ``hf auth login`` keeps: endpoint and token are settings of llmlb.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from llmlb.bus.errors import Forbidden, InvalidRequest, LlmlbError, ModelUnknown, PullFailed, Unauthenticated
from llmlb.bus.hub_names import Wanted, without_credentials
from llmlb.bus.hub_plan import RepoFile
from llmlb.node.pull.trouble import Backoff, Passing, passes, retry_after_s

log = logging.getLogger("llmlb.node.pull.hub")

ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 10.0
MAX_THREADS = 16
"""That ask at the same time. Pulls that were cancelled leave theirs behind until the hub has answered or the timeout
is over; with so many of them no further one is begun."""

_ADDRESS = re.compile(r"(?P<scheme>\w+://)(?:[^/\s'\"]*@)?(?P<rest>[^\s?'\"]*)(?:\?[^\s'\"]*)?")

T = TypeVar("T")
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repo holds at a commit."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a file's bytes are now. ``url`` may be signed and expire; ``etag`` is the hub's: sha256 of an LFS file,
    git's sha1 of another; ``headers`` go to ``url`` and hold the token only where it is the hub's own."""

    url: str
    etag: str
    size: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Hub:
    """One hub. ``token`` None: without credentials. Its threads end with the process, whatever they wait for."""

    def __init__(self, endpoint: str | None = None, token: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self.endpoint = (endpoint or ENDPOINT).rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._room = threading.BoundedSemaphore(MAX_THREADS)

    async def listing(self, wanted: Wanted, on_note: Note | None = None, backoff: Backoff | None = None) -> Listing:
        """The files of a repo, and proof that they may be read, so that a refusal comes before the first byte.

        Passing trouble is tried again until it is over, and told to ``on_note``. Raises ModelUnknown, PullFailed,
        Unauthenticated or Forbidden for a lasting cause. Cancelling leaves a thread behind for at most the timeout.
        """
        backoff = backoff or Backoff()
        loop, said = asyncio.get_running_loop(), ""
        while True:
            started = loop.time()
            try:
                return await self._in_thread(lambda: self.list_now(wanted))
            except Passing as trouble:
                wait_s = backoff.failed(started, trouble.retry_after_s)
                if trouble.reason != said:
                    log.warning("hub_waits repo=%s reason=%r wait_s=%.1f", wanted.repo, trouble.reason, wait_s)
                said = trouble.reason
                if on_note is not None:
                    on_note(f"{trouble.reason}; next try in {wait_s:.0f} s")
                await asyncio.sleep(wait_s)

    async def _in_thread(self, ask: Callable[[], T]) -> T:
        """Not by an executor: the interpreter waits for the threads of those when it ends."""
        if not self._room.acquire(blocking=False):
            raise Passing("too many requests to the hub are under way")
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if answer.done():  # cancelled
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)

        def top() -> None:
            value, failed = None, None
            try:
                value = ask()
            except Exception as error:  # noqa: BLE001 - the top of a thread; who awaits the answer gets it
                failed = error
            finally:
                self._room.release()
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(settle, value, failed)

        threading.Thread(target=top, name="llmlb-hub", daemon=True).start()
        return cast(T, await answer)

    def list_now(self, wanted: Wanted) -> Listing:
        """As `listing`, blocking, once. Raises Passing as well."""
        return self._asked(wanted, lambda: self._list(wanted))

    def locate(self, wanted: Wanted, commit: str, path: str) -> Location:
        """Where a file is now. Blocks for at most the timeout. Raises as `list_now` does."""
        return self._asked(wanted, lambda: self._locate(wanted.repo, commit, path))

    def _asked(self, wanted: Wanted, ask: Callable[[], T]) -> T:
        import httpx2
        from huggingface_hub import constants

        # Otherwise it first asks the hub of the environment, which may be another one, for /api/agent-harnesses.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        try:
            return ask()
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, LookupError, TypeError) as error:
            raise mapped(error, wanted, self.endpoint, has_token=self._token is not None) from error

    def _list(self, wanted: Wanted) -> Listing:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self._token or False)
        info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=self._timeout_s)
        files = tuple(
            RepoFile(each.rfilename, int(each.size or 0), each.lfs.sha256 if each.lfs else each.blob_id)
            for each in info.siblings or []
        )
        if info.sha is None:
            raise PullFailed(f"the hub names no commit of {wanted.repo}")
        if info.gated and files:
            # A gated repo's list is open to everyone; only its files tell whether they may be read.
            self._locate(wanted.repo, info.sha, max(files, key=lambda file: file.size).path)
        return Listing(info.id, info.sha, files)

    def _locate(self, repo: str, commit: str, path: str) -> Location:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)
        token = self._token or False
        found = get_hf_file_metadata(url, token=token, timeout=self._timeout_s, endpoint=self.endpoint)
        if found.etag is None or found.size is None:
            raise PullFailed(f"the hub tells neither size nor ETag of {path} of {repo}")
        if urlsplit(found.location).scheme not in ("http", "https"):
            raise PullFailed(
                f"the hub sends to an address for {path} of {repo} that is not http: nothing is read there"
            )
        ours = self._token is not None and _origin(found.location) == _origin(self.endpoint)
        headers = {"Authorization": f"Bearer {self._token}"} if ours else {}
        return Location(found.location, found.etag, found.size, headers)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def public(text: str) -> str:
    """A foreign error's text in one line, without what may be secret in its addresses: names, passwords, signatures."""
    return _ADDRESS.sub(lambda found: found["scheme"] + found["rest"], " ".join(text.split()))


def mapped(error: Exception, wanted: Wanted, endpoint: str, *, has_token: bool) -> LlmlbError | Passing:
    """The failure of a call of huggingface_hub in llmlb's terms. Every class of its errors is covered."""
    import httpx2
    from huggingface_hub import errors as hf

    endpoint = without_credentials(endpoint)
    host, repo, detail = urlsplit(endpoint).netloc, wanted.repo, f"{type(error).__name__}: {public(str(error))}"[:500]
    if isinstance(error, hf.GatedRepoError):
        return _gated(repo, endpoint, detail, has_token=has_token)
    if isinstance(error, hf.RevisionNotFoundError):
        return ModelUnknown(f"{repo} on {host} has no revision {wanted.revision}", param="model", detail=detail)
    if isinstance(error, hf.RemoteEntryNotFoundError):
        return PullFailed(f"a file of {repo} is not on {host} any more", detail=detail)
    if isinstance(error, hf.RepositoryNotFoundError):
        return _unknown(repo, host, detail, has_token=has_token)
    if isinstance(error, hf.HfHubHTTPError):
        return _http(error.response, repo, host, detail, has_token=has_token)
    if isinstance(error, hf.HFValidationError):
        return InvalidRequest(f"bad model name {repo!r}", param="model", detail=detail)
    if isinstance(error, hf.OfflineModeIsEnabled):
        return PullFailed("HF_HUB_OFFLINE is set: nothing can be pulled", detail=detail)
    if isinstance(error, httpx2.TimeoutException):
        return Passing(f"{host} does not answer in time")
    if isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol):
        return Passing(f"{host} can't be reached ({public(str(error)) or type(error).__name__})")
    return PullFailed(f"{host} answered in a way that is not understood", detail=detail)


def _gated(repo: str, endpoint: str, detail: str, *, has_token: bool) -> LlmlbError:
    page = f"{endpoint}/{repo}"
    if has_token:
        return Forbidden(f"{repo} is gated and the token in HF_TOKEN may not read it: ask on {page}", detail=detail)
    message = f"{repo} is gated: accept its terms on {page} and set HF_TOKEN to a token of that account"
    return Unauthenticated(message, detail=detail)


def _unknown(repo: str, host: str, detail: str, *, has_token: bool) -> LlmlbError:
    private = "or it is private and the token in HF_TOKEN may not read it"
    if not has_token:
        private = "or it is private: then HF_TOKEN is needed"
    return ModelUnknown(f"{host} has no model {repo}, {private}", param="model", detail=detail)


def _http(response: Any, repo: str, host: str, detail: str, *, has_token: bool) -> LlmlbError | Passing:
    status = int(response.status_code)
    if passes(status):
        what = "limits the number of requests (429)" if status == 429 else f"answers {status}"
        return Passing(f"{host} {what}", retry_after_s(response.headers))
    if status == 401:
        # Without a code, and over plain http even unknown repos: huggingface_hub knows them by https:// only.
        if has_token:
            return Unauthenticated(f"{host} refuses the token in HF_TOKEN", detail=detail)
        return _unknown(repo, host, detail, has_token=False)
    if status == 403:
        return Forbidden(f"{host} refuses access to {repo}", detail=detail)
    if status in (404, 410):
        return ModelUnknown(f"{host} has no model {repo}", param="model", detail=detail)
    return PullFailed(f"{host} answers {status} for {repo}", detail=detail)
