"""What a person may write to name a model of the hub, and the pull task of it. Pure; for nodes and routers.

``owner/model``, ``owner/model:QUANT``, or an address: of the repo, of a ``/tree/``, or of a file by ``/blob/``,
``/resolve/`` or ``/raw/``; with or without ``https://``, on huggingface.co, hf.co or the configured hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from llmlb.bus.errors import InvalidRequest

MAX_NAME = 256
MAX_REPO = 96
"""Of an owner and of a model. Source: huggingface_hub, validate_repo_id."""

HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
MAIN = "main"

_ALLOWED = re.compile(r"[A-Za-z0-9/_.:-]+")
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_FILE_ROUTES = frozenset({"blob", "resolve", "raw"})
_NOT_MODELS = frozenset({"datasets", "spaces", "kernels", "api", "collections", "papers", "docs", "settings"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. ``quant`` and ``file`` are None when not named; ``revision``: branch, tag or commit."""

    owner: str
    model: str
    quant: str | None = None
    file: str | None = None
    revision: str = MAIN

    @property
    def repo(self) -> str:
        return f"{self.owner}/{self.model}"

    @property
    def name(self) -> str:
        """Canonical: what was asked for, however it was written."""
        return f"{self.repo}:{self.quant}" if self.quant else self.repo


def without_credentials(address: str) -> str:
    """An address as it may be shown: without the name and password that it may hold."""
    url = urlsplit(address)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def task_id_of(wanted: Wanted) -> str:
    """The task of what was asked for, however it was written: 16 hex digits."""
    canonical = json.dumps([wanted.repo, wanted.quant, wanted.file, wanted.revision])
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def title_of(wanted: Wanted) -> str:
    """What was asked for, as text that `parse_name` reads, whichever hub is configured."""
    if wanted.file is not None:
        return f"hf.co/{wanted.repo}/blob/{wanted.revision}/{wanted.file}"
    return wanted.name if wanted.revision == MAIN else f"hf.co/{wanted.repo}/tree/{wanted.revision}"


def wanted_of(name: str, file: str | None = None) -> Wanted:
    """What a registration stands for: its name, and the file when one was chosen. Raises InvalidRequest."""
    wanted = parse_name(name)
    return wanted if file is None else Wanted(wanted.owner, wanted.model, file=file, revision=MAIN)


def _bad(text: str, why: str) -> InvalidRequest:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return InvalidRequest(f"bad model name {shown!r}: {why}", param="model")


def parse_name(text: str, endpoint: str | None = None) -> Wanted:
    """The model a text names. ``endpoint`` is the configured hub. Raises InvalidRequest, saying what is wrong.

    The query and fragment of an address (``?download=true``) are left out before the check of its characters.
    """
    named = text.strip()
    host, path = _split(named, endpoint)
    if host is not None:
        path = unquote(path)
    if not path or len(path) > MAX_NAME:
        raise _bad(text, f"1 to {MAX_NAME} characters")
    if not _ALLOWED.fullmatch(path):
        raise _bad(text, "only letters, digits and / _ . : - are allowed")
    parts = path.strip("/").split("/") if host is not None else path.split("/")
    if ".." in path or any(part in {"", "."} for part in parts):
        raise _bad(text, "it has an empty, '.' or '..' part")
    if host is None or len(parts) == 2:
        return _short(text, parts)
    return _address(text, parts)


def _split(text: str, endpoint: str | None) -> tuple[str | None, str]:
    """(host, path) of an address, (None, text) of a name."""
    ours = urlsplit(without_credentials(endpoint)).netloc.lower() if endpoint else None
    scheme, mark, rest = text.partition("://")
    if mark:
        if scheme.lower() == "hf":
            return None, rest.rstrip("/")
        if scheme.lower() not in {"http", "https"}:
            raise _bad(text, f"{scheme}:// is no address of a hub")
        host = rest.split("/", 1)[0].split("?", 1)[0].lower()
        if host not in HOSTS and host != ours:
            raise _bad(text, f"{host or 'nothing'} is not the configured hub" + ("" if ours is None else f" ({ours})"))
    else:
        host, rest = text.split("/", 1)[0].lower(), text
        if text.count("/") < 2 or (host not in HOSTS and host != ours):
            return None, text
    path = rest[len(host) :].split("?", 1)[0].split("#", 1)[0]
    return host, path.strip("/")


def _repo(text: str, owner: str, model: str) -> tuple[str, str]:
    for part in (owner, model):
        if len(part) > MAX_REPO or not _REPO_PART.fullmatch(part) or "--" in part or part.endswith(".git"):
            raise _bad(text, f"{part!r} is no name of an owner or a model")
    return owner, model


def _short(text: str, parts: list[str]) -> Wanted:
    if len(parts) != 2:
        raise _bad(text, "use owner/model, owner/model:QUANT or an address on the hub")
    model, mark, quant = parts[1].partition(":")
    if mark and (not quant or ":" in quant):
        raise _bad(text, "what follows the colon is no quantization")
    return Wanted(*_repo(text, parts[0], model), quant=quant or None)


def _address(text: str, parts: list[str]) -> Wanted:
    if len(parts) < 2 or parts[0] in _NOT_MODELS:
        raise _bad(text, "the address is not that of a model")
    owner, model = _repo(text, parts[0], parts[1])
    route, rest = parts[2], parts[3:]
    if route != "tree" and route not in _FILE_ROUTES:
        raise _bad(text, f"/{route} is no page with files: use /tree, /blob or /resolve")
    if not rest:
        raise _bad(text, f"after /{route} a revision is missing")
    # refs/pr/3 and refs/convert/parquet are one revision. Source: the hub's addresses of pull requests.
    count = 3 if rest[0] == "refs" and len(rest) >= 3 else 1
    revision, file = "/".join(rest[:count]), "/".join(rest[count:])
    if route == "tree":
        return Wanted(owner, model, revision=revision)
    if not file:
        raise _bad(text, f"after /{route}/{revision} a file is missing")
    return Wanted(owner, model, file=file, revision=revision)
