"""A local hub that speaks the Hugging Face Hub's API well enough for the real client, and misbehaves when told to.

Two servers on loopback, as in reality: the hub (model info, tree, resolve) and the CDN (signed addresses, Range). The
CDN has another port, so another origin: huggingface_hub does not follow a redirect there, and a client that sends its
token there is answered 400, as S3 does. Standard library only; one thread a connection.

Source of routes, headers and error codes: huggingface_hub 2.4 (hf_api.py, file_download.py, utils/_http.py).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from tests.support.hub_content import Fault, HubFile, Repo, Seen
from tests.support.hub_server import CdnHandler, HubHandler, HubServer

__all__ = ["Fault", "HubFile", "LocalHub", "Repo", "Seen"]


class LocalHub:
    """The hub. ``with LocalHub() as hub``; then ``hub.url`` is the endpoint."""

    def __init__(self, tokens: tuple[str, ...] = ("hf_good",)) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.tokens = {*tokens, "hf_noaccess"}
        self.page_size = 1000
        self.budget: int | None = None
        """Bytes the CDN sends in all before it holds back (until :meth:`release`); None is without limit."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._secret = b"0"
        self._stopping = threading.Event()
        self._api = HubServer(self, HubHandler)
        self._cdn = HubServer(self, CdnHandler)
        self.url = f"http://127.0.0.1:{self._api.server_address[1]}"
        self.cdn_url = f"http://127.0.0.1:{self._cdn.server_address[1]}"

    def __enter__(self) -> LocalHub:
        for server in (self._api, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.release()
        for server in (self._api, self._cdn):
            server.shutdown()
            server.close_connections()
            server.server_close()

    # Content

    def add(
        self, name: str, files: Mapping[str, bytes | Path], *, gated: bool = False, private: bool = False
    ) -> dict[str, HubFile]:
        """A repo, or a new commit of it."""
        repo = self.repos.setdefault(name, Repo(name))
        repo.gated, repo.private = gated, private
        made = {path: HubFile(path, content) for path, content in files.items()}
        seed = name + json.dumps({path: file.blob_id for path, file in made.items()}) + str(len(repo.commits))
        repo.commits[hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()] = made
        return made

    def swap(self, name: str, path: str, content: bytes) -> HubFile:
        """Change a file in every commit, which a real hub never does, but a mirror may."""
        made = HubFile(path, content)
        for files in self.repos[name].commits.values():
            files[path] = made
        return made

    # Misbehaviour

    def misbehave(self, **what: object) -> Fault:
        fault = Fault(**what)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def behave(self) -> None:
        with self._lock:
            self._faults.clear()

    def fault(self, where: str, path: str) -> Fault | None:
        """The fault the next request to a file gets; it is used up."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.where == where and fault.path in (None, path):
                    fault.times -= 1
                    return fault
        return None

    def expire_links(self) -> None:
        """Every address signed so far is answered 403 from now on."""
        self._secret = str(int(self._secret) + 1).encode()

    # What happened

    def record(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)

    def requests(self, where: str, path: str = "") -> list[Seen]:
        with self._lock:
            return [seen for seen in self.seen if seen.where == where and path in seen.path]

    def served(self, path: str = "") -> int:
        """Bytes of files sent so far, by the CDN and by the hub itself."""
        return sum(seen.sent for where in ("cdn", "resolve") for seen in self.requests(where, path))

    def wait_served(self, count: int, limit_s: float = 20.0) -> None:
        """Wait until so many bytes are out."""
        with self._room:
            assert self._room.wait_for(lambda: sum(seen.sent for seen in self.seen) >= count, limit_s)

    def release(self) -> None:
        with self._room:
            self.budget = None
            self._room.notify_all()

    def grant(self, wanted: int) -> int:
        """How many of ``wanted`` bytes the CDN may send now; waits for room. 0 when the hub stops."""
        with self._room:
            self._room.wait_for(lambda: self.budget != 0 or self._stopping.is_set())
            if self._stopping.is_set():
                return 0
            if self.budget is None:
                return wanted
            wanted = min(wanted, self.budget)
            self.budget -= wanted
            return wanted

    def refund(self, count: int) -> None:
        with self._room:
            if self.budget is not None:
                self.budget += count
                self._room.notify_all()

    def count(self, seen: Seen, sent: int) -> None:
        with self._room:
            seen.sent += sent
            self._room.notify_all()

    def hold(self) -> None:
        """Keep a connection open and silent until the hub stops."""
        self._stopping.wait(60)

    # Signed addresses

    def sign(self, file: HubFile, name: str) -> str:
        expires = int(time.time()) + 3600
        path = f"/{quote(name)}/{file.sha256}/{quote(file.path)}"
        return f"{self.cdn_url}{path}?Expires={expires}&Signature={self._signature(path, expires)}"

    def signed_well(self, path: str, query: dict[str, list[str]]) -> bool:
        expires = int(query.get("Expires", ["0"])[0])
        return expires > time.time() and query.get("Signature") == [self._signature(path, expires)]

    def _signature(self, path: str, expires: int) -> str:
        return hmac.new(self._secret, f"{path}{expires}".encode(), "sha256").hexdigest()[:32]
