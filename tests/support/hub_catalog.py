"""The local hub with what a catalog needs: search with Link paging, counts, models that are only metadata; and trouble
that concerns the metadata API alone: latency, outage, rate limit.

Source of the search's parameters and fields: huggingface_hub 2.4, ``hf_api.py``, ``list_models``.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from tests.support.hub import LocalHub, Repo

Outage = Literal["closes", "hangs", "500", "garbage"]


class PaperFile:
    """A file of which only the metadata exists, of any size."""

    lfs = True

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size
        self.sha256 = hashlib.sha256(f"{path} {size}".encode()).hexdigest()
        self.blob_id = self.sha256[:40]
        self.etag = self.sha256

    def read(self, offset: int, count: int) -> bytes:
        raise AssertionError(f"somebody downloads {self.path}")

    def sibling(self) -> dict[str, object]:
        lfs = {"sha256": self.sha256, "size": self.size, "pointerSize": 135}
        return {"rfilename": self.path, "size": self.size, "blobId": self.blob_id, "lfs": lfs}


@dataclass
class Counts:
    downloads: int = 0
    likes: int = 0
    context_length: int | None = None
    parameters: int | None = None


class CatalogHub(LocalHub):
    """As `LocalHub`. ``api_latency_s``: of each answer of the metadata API; ``outage``: what it does instead."""

    def __init__(self, tokens: tuple[str, ...] = ("hf_good",)) -> None:
        super().__init__(tokens)
        self.api_latency_s = 0.0
        self.outage: Outage | None = None
        self.allowed: int | None = None
        """Requests of the metadata API until it answers 429; None is without limit."""
        self.retry_after = "30"
        self.counts: dict[str, Counts] = {}
        self.asked_as: list[tuple[str, str]] = []
        """(host, path) of each request: two processes can be told apart by the name they call the hub."""
        self.hanging = threading.Event()
        """Set: what hangs goes on."""
        handler = self._api.RequestHandlerClass
        self._api.RequestHandlerClass = type("CatalogHandler", (_CatalogRoutes, handler), {})  # type: ignore[assignment]

    def __exit__(self, *what: object) -> None:
        self.hanging.set()
        super().__exit__(*what)

    def add_paper(self, name: str, files: Mapping[str, int], *, gated: bool = False, **counts: Any) -> None:
        """A repo of which only metadata exists: sizes by path."""
        repo = self.repos.setdefault(name, Repo(name))
        repo.gated = gated
        commit = hashlib.sha1(f"{name} {sorted(files.items())}".encode(), usedforsecurity=False).hexdigest()
        repo.commits[commit] = {path: PaperFile(path, size) for path, size in files.items()}  # type: ignore[misc]
        self.counts[name] = Counts(**counts)

    def add_many(self, count: int, *, variants: int = 6, prefix: str = "own/model") -> None:
        """So many repos with variants, the first the most downloaded."""
        quants = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")[:variants]
        for number in range(count):
            name = f"{prefix}-{number:04d}-GGUF"
            files = {f"model-{number:04d}-{quant}.gguf": (index + 2) * 10**9 for index, quant in enumerate(quants)}
            self.add_paper(name, files, downloads=10**6 - number, likes=number, parameters=7 * 10**9)

    def asked(self, path: str = "/api/models") -> int:
        """Requests of the metadata API so far."""
        return sum(path in seen.path for seen in self.requests("api"))


class _CatalogRoutes:
    """In front of the hub's own routes."""

    server: Any
    headers: Any
    path: str

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        hub: CatalogHub = self.server.hub
        hub.asked_as.append((self.headers.get("Host", ""), path))
        if path.startswith("/api/models") and (hub.api_latency_s or hub.outage or hub.allowed is not None):
            time.sleep(hub.api_latency_s)
            if self._trouble(hub):
                return
        if path == "/api/models":
            self._search(hub, query)
        elif path.startswith("/api/models/") and "expand" in query:
            self._counted(hub, path.removeprefix("/api/models/"))
        else:
            super().route(path, query)  # type: ignore[misc]

    def _trouble(self, hub: CatalogHub) -> bool:
        out: Any = self
        if hub.outage == "closes":
            out.close_connection = True
            return True
        if hub.outage == "hangs":
            hub.hanging.wait(60)
            out.close_connection = True
            return True
        if hub.outage is not None:
            out.answer(500 if hub.outage == "500" else 200, b"<html>no</html>", Content_Type="text/html")
            return True
        if hub.allowed is not None:
            hub.allowed -= 1
            if hub.allowed < 0:
                out.refuse(429, None, "We had to rate limit you", Retry_After=hub.retry_after)
                return True
        return False

    def _search(self, hub: CatalogHub, query: dict[str, list[str]]) -> None:
        words = query.get("search", [""])[0].lower().split()
        found = [repo for repo in hub.repos.values() if all(word in repo.name.lower() for word in words)]
        if "gguf" in query.get("filter", []):
            found = [repo for repo in found if any(path.endswith(".gguf") for path in repo.commits[repo.head])]
        found.sort(key=lambda repo: -hub.counts.get(repo.name, Counts()).downloads)
        start, limit = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["1000"])[0])
        page, more = found[start : start + limit], {}
        if start + limit < len(found):
            again = urlencode(
                [*((k, v) for k, vs in query.items() if k != "cursor" for v in vs), ("cursor", start + limit)]
            )
            more = {"Link": f'<{hub.url}/api/models?{again}>; rel="next"'}
        out: Any = self
        out.answer_json([self._item(hub, repo) for repo in page], **more)

    def _item(self, hub: CatalogHub, repo: Repo) -> dict[str, Any]:
        counts = hub.counts.get(repo.name, Counts())
        return {
            "_id": "0",
            "id": repo.name,
            "sha": repo.head,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "downloads": counts.downloads,
            "likes": counts.likes,
            "gated": "manual" if repo.gated else False,
            "tags": ["gguf", "text-generation"],
            "gguf": {"total": counts.parameters, "context_length": counts.context_length, "architecture": "llama"},
            "siblings": [{"rfilename": path} for path in repo.commits[repo.head]],
        }

    def _counted(self, hub: CatalogHub, name: str) -> None:
        out: Any = self
        counts = hub.counts.get(name)
        if counts is None:
            out.refuse(404, "RepoNotFound", "Repository not found")
        else:
            out.answer_json({"_id": "0", "id": name, "downloads": counts.downloads, "likes": counts.likes})


def catalog_hub() -> Iterator[CatalogHub]:
    """For a fixture."""
    with CatalogHub() as hub:
        yield hub
