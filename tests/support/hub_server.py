"""The two servers of a local hub: its API, and the CDN that has the bytes. Standard library; one thread a connection.

Source of routes, headers and error codes: huggingface_hub 2.4 (hf_api.py, file_download.py, utils/_http.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.hub_content import Fault, HubFile, Repo, Seen

if TYPE_CHECKING:
    from tests.support.hub import LocalHub

PIECE = 64 * 1024
SEND_BUFFER_BYTES = 64 * 1024
"""Small, so that what counts as sent is close to what the client has: a kernel otherwise takes 4 MiB at once."""


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LocalHub, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: object) -> None:
        self._open.discard(request)  # type: ignore[arg-type]
        super().shutdown_request(request)  # type: ignore[arg-type]

    def close_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    where = "api"
    seen: Seen

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.seen = Seen(
            self._where(unquote(url.path)),
            self.command,
            unquote(url.path),
            self.headers.get("Range"),
            self.headers.get("Authorization"),
            time.monotonic(),
        )
        self.server.hub.record(self.seen)
        try:
            self.route(url.path, parse_qs(url.query))
        except OSError:
            self.close_connection = True

    def _where(self, path: str) -> str:
        return self.where

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        raise NotImplementedError

    # Answers

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: object, **headers: str) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str | None, message: str, **headers: str) -> None:
        if code is not None:
            headers["X_Error_Code"] = code
        body = json.dumps({"error": message}).encode()
        self.answer(status, body, X_Error_Message=message, Content_Type="application/json", **headers)

    def misbehaved(self, fault: Fault | None) -> bool:
        """Answers by a status the fault asks for."""
        if fault is None or fault.status is None:
            return False
        extra = {"Retry_After": fault.retry_after} if fault.retry_after is not None else {}
        extra |= {name.replace("-", "_"): value for name, value in fault.headers.items()}
        self.answer(fault.status, b"go away", Content_Type="text/plain", **extra)
        return True

    def send_file(self, file: HubFile, fault: Fault | None, **headers: str) -> None:
        """The file or the range asked for, as far as the fault allows."""
        fault = fault or Fault()
        wanted = None if fault.ignore_range else self._range(file.size)
        if wanted == (0, 0) and file.size:
            self.answer(416, Content_Range=f"bytes */{file.size}")
            return
        start, end = wanted or (0, file.size)
        headers |= {"Content_Length": str(end - start), "Content_Type": "application/octet-stream"}
        headers |= {name.replace("-", "_"): value for name, value in fault.headers.items()}
        if not fault.ignore_range:
            headers["Accept_Ranges"] = "bytes"
        if wanted is not None:
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{file.size}"
        self.answer(200 if wanted is None else 206, **headers)
        if self.command == "GET":
            self._body(file, start, end, fault)

    def _range(self, size: int) -> tuple[int, int] | None:
        """The range asked for; (0, 0) when there is no such range."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            return None
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        return (start, end) if start < end else (0, 0)

    def _body(self, file: HubFile, start: int, end: int, fault: Fault) -> None:
        hub, offset = self.server.hub, start
        limits = [limit for limit in (fault.cut_after, fault.stall_after) if limit is not None]
        stop = min([end, *(start + limit for limit in limits)])
        while offset < stop and (count := hub.grant(min(PIECE, stop - offset))):
            piece = file.read(offset, count)
            if fault.wrong_bytes and offset == start:
                piece = bytes([piece[0] ^ 0xFF]) + piece[1:]
            self._send(piece)
            offset += len(piece)
            time.sleep(fault.pause_s)
        if fault.stall_after is not None:
            hub.hold()
        if offset < end:
            self.close_connection = True

    def _send(self, piece: bytes) -> None:
        """Send all of it, counting as it goes; what the client does not take goes back to the budget."""
        hub, at = self.server.hub, 0
        try:
            while at < len(piece):
                sent = self.connection.send(piece[at:])
                hub.count(self.seen, sent)
                at += sent
        except OSError:
            hub.refund(len(piece) - at)
            raise


class HubHandler(_Handler):
    def _where(self, path: str) -> str:
        return "resolve" if "/resolve" in path else "api"

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self._tree),
            (r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", self._small),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for pattern, route in routes:
            if (match := re.fullmatch(pattern, path)) is not None:
                route(query, *(None if group is None else unquote(group) for group in match.groups()))
                return
        self.refuse(404, None, "Sorry, we can't find the page you are looking for.")

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _files(self, name: str, revision: str | None) -> tuple[Repo, str, dict[str, HubFile]] | None:
        """The repo at a revision, or None after an error was sent."""
        token = self._token()
        if token is not None and token not in self.server.hub.tokens:
            self.refuse(401, None, "Invalid credentials in Authorization header")
            return None
        # The hub takes a name in any case, and answers with its own.
        known = {each.lower(): repo for each, repo in self.server.hub.repos.items()}
        repo = known.get(name.lower())
        if repo is None or (repo.private and token != "hf_good"):
            if token is None:
                self.refuse(401, "RepoNotFound", "Invalid username or password.")
            else:
                self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        commit = repo.head if revision in (None, "main") else revision
        if commit not in repo.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        assert commit is not None
        return repo, commit, repo.commits[commit]

    def _info(self, query: dict[str, list[str]], name: str, revision: str | None) -> None:
        if self.misbehaved(self.server.hub.fault("api", name)) or (found := self._files(name, revision)) is None:
            return
        repo, commit, files = found
        blobs = "blobs" in query
        siblings = [file.sibling() if blobs else {"rfilename": path} for path, file in files.items()]
        self.answer_json(
            {
                "_id": "0",
                "id": repo.name,
                "modelId": repo.name,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "disabled": False,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "tags": ["gguf"],
                "siblings": siblings,
            }
        )

    def _tree(self, query: dict[str, list[str]], name: str, revision: str, folder: str | None) -> None:
        if self.misbehaved(self.server.hub.fault("api", name)) or (found := self._files(name, revision)) is None:
            return
        _, _, files = found
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, object]] = {}
        for path, file in files.items():
            if not path.startswith(prefix):
                continue
            first, _, rest = path.removeprefix(prefix).partition("/")
            if rest:
                entries.setdefault(prefix + first, {"type": "directory", "path": prefix + first, "oid": "0", "size": 0})
            if recursive or not rest:
                entries[path] = file.leaf()
        if folder and not entries:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return
        start, size = int(query.get("cursor", ["0"])[0]), self.server.hub.page_size
        page = list(entries.values())[start : start + size]
        here = f"{self.server.hub.url}{urlsplit(self.path).path}?recursive={recursive}&cursor={start + size}"
        more = {"Link": f'<{here}>; rel="next"'} if start + size < len(entries) else {}
        self.answer_json(page, **more)

    def _file(self, name: str, revision: str, path: str) -> tuple[str, HubFile] | None:
        if (found := self._files(name, revision)) is None:
            return None
        repo, commit, files = found
        token = self._token()
        if repo.gated and token != "hf_good":
            where = f"Access to model {name} is restricted"
            if token is None:
                self.refuse(401, "GatedRepo", f"{where}. You must have access to it and be authenticated to access it.")
            else:
                self.refuse(403, "GatedRepo", f"{where} and you are not in the authorized list.")
            return None
        if path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return None
        return commit, files[path]

    def _resolve(self, query: dict[str, list[str]], name: str, revision: str, path: str) -> None:
        hub = self.server.hub
        if self.misbehaved(hub.fault("resolve", path)) or (found := self._file(name, revision, path)) is None:
            return
        commit, file = found
        name = next(each for each in hub.repos if each.lower() == name.lower())
        headers = {"X_Repo_Commit": commit, "Accept_Ranges": "bytes", "Vary": "Origin, Accept"}
        if not file.lfs:
            headers |= {"X_Linked_Size": str(file.size), "X_Linked_ETag": f'"{file.blob_id}"'}
            place = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}?etag=%22{file.blob_id}%22"
            self.answer(307, b"Temporary Redirect", Location=place, **headers)
            return
        auth = f"{hub.url}/api/models/{name}/xet-read-token/{commit}"
        headers |= {
            "X_Linked_Size": str(file.size),
            "X_Linked_ETag": f'"{file.sha256}"',
            "X_Xet_Hash": file.sha256,
            "Link": f'<{auth}>; rel="xet-auth", <{hub.url}/v1/reconstructions/{file.sha256}>; '
            'rel="xet-reconstruction-info"',
        }
        self.answer(302, b"Found. Redirecting", Location=hub.sign(file, name), **headers)

    def _small(self, query: dict[str, list[str]], name: str, revision: str, path: str) -> None:
        """Where the hub sends clients for files that are in git."""
        fault = self.server.hub.fault("cdn", path)
        if self.misbehaved(fault) or (found := self._file(name, revision, path)) is None:
            return
        commit, file = found
        self.send_file(file, fault, ETag=f'"{file.blob_id}"', X_Repo_Commit=commit)


class CdnHandler(_Handler):
    where = "cdn"

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/([0-9a-f]{64})/(.+)", unquote(path))
        hub = self.server.hub
        if self.headers.get("Authorization"):
            self.answer(400, b"<Error><Code>InvalidArgument</Code>Only one auth mechanism allowed</Error>")
            return
        if match is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        fault = hub.fault("cdn", match[3])
        if not hub.signed_well(path, query) or (fault is not None and fault.expire):
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            return
        if self.misbehaved(fault):
            return
        for files in hub.repos[match[1]].commits.values():
            file = files.get(match[3])
            if file is not None and file.sha256 == match[2]:
                self.send_file(
                    file, fault, ETag=f'"{file.sha256[:32]}-7"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT"
                )
                return
        self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
