"""What a local hub holds, and how it is told to misbehave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SMALL_FILES = (".json", ".txt", ".md", ".jinja", ".py", "LICENSE", ".gitattributes")
"""Kept in git and served by the hub itself; everything else is LFS and comes from the CDN."""


class HubFile:
    """A file of a repo: bytes, or a file on the disk that is read piece by piece."""

    def __init__(self, path: str, content: bytes | Path) -> None:
        self.path = path
        self._content = content
        self.lfs = not path.endswith(SMALL_FILES)
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"", usedforsecurity=False)
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size
        sha1.update(f"blob {self.size}\0".encode())
        for offset in range(0, self.size, 1 << 20):
            piece = self.read(offset, 1 << 20)
            sha256.update(piece)
            sha1.update(piece)
        self.sha256, self.blob_id = sha256.hexdigest(), sha1.hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def read(self, offset: int, count: int) -> bytes:
        if isinstance(self._content, bytes):
            return self._content[offset : offset + count]
        with self._content.open("rb") as file:
            file.seek(offset)
            return file.read(count)

    def sibling(self) -> dict[str, object]:
        """As in ``GET /api/models/<repo>?blobs=True``."""
        out: dict[str, object] = {"rfilename": self.path, "size": self.size, "blobId": self.blob_id}
        if self.lfs:
            out["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return out

    def leaf(self) -> dict[str, object]:
        """As in ``GET /api/models/<repo>/tree/<revision>``."""
        out: dict[str, object] = {"type": "file", "path": self.path, "size": self.size, "oid": self.blob_id}
        if self.lfs:
            out |= {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}, "xetHash": self.sha256}
        return out


@dataclass
class Repo:
    """A repo: each commit holds its files; ``main`` is the newest one."""

    name: str
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Fault:
    """What to do to the next ``times`` requests. ``where``: ``api``, ``resolve`` or ``cdn``; ``path``: one file only.

    ``status`` answers with it (and ``retry_after``); ``cut_after`` closes after so many bytes of the body and
    ``stall_after`` falls silent; ``ignore_range`` answers 200 with everything; ``wrong_bytes`` flips the body's first
    byte; ``pause_s`` is a rest after each piece; ``expire`` answers 403 as a CDN does when a signature is over;
    ``headers`` come on top.
    """

    where: str = "cdn"
    path: str | None = None
    times: int = 1
    status: int | None = None
    retry_after: str | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    ignore_range: bool = False
    wrong_bytes: bool = False
    pause_s: float = 0.0
    expire: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """A request and what was sent for it. ``sent`` counts bytes of the body."""

    where: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    at: float
    status: int = 0
    sent: int = 0
