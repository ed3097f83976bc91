"""Every setting of every process: read once at start, frozen, passed down.

The only module that reads the environment. Bad values are errors (:class:`ConfigError`), never silent defaults. Plain
dataclasses, not pydantic: the command line loads this at start-up.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmlb.bus import labels
from llmlb.bus.errors import ConfigError

ROUTER_PORT = 32768
NODE_PORT = 32769

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``30s``, ``5m``, ``1h30m``, ``250ms``; ``-1`` stands for "never" and stays -1."""
    text = text.strip().lower()
    if re.fullmatch(r"-\d+(\.\d+)?(ms|s|m|h|d)?", text):
        return -1.0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d))+", text):
        raise ValueError("not a duration like 30s, 5m or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|s|m|h|d)", text))


def parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("not a boolean: use true or false")


def parse_port(text: str) -> int:
    """A TCP port; 0 lets the system choose one."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError("not a port: 0 to 65535")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def parse_size(text: str) -> int:
    """Bytes from ``1048576``, ``7MiB``, ``20MB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?", text.strip().lower())
    if match is None:
        raise ValueError("not a size like 7MiB or 20MB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** (" kmg".index(match[2]) if match[2] else 0))


def _auth(text: str) -> str:
    if text not in {"on", "off"}:
        raise ValueError("use on or off")
    return text


def _networks(text: str) -> str:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        ipaddress.ip_network(part, strict=False)
    return ",".join(parts)


def _api_key(text: str) -> str:
    key = text.strip()
    if not re.fullmatch(r"[!-~]{1,512}", key):
        raise ValueError("not an API key: llmlb router key create makes one")
    return key


def _image_urls(text: str) -> str:
    if text not in {"off", "public", "any"}:
        raise ValueError("use off, public or any")
    return text


def _labels(text: str) -> str:
    return ",".join(labels.checked(text.split(",")))


def _join_token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,256}", token):
        raise ValueError("not a join token: llmlb router join-token makes one")
    return token


def _bus_url(text: str) -> str:
    for part in text.split(","):
        url = urlsplit(part.strip())
        if url.scheme not in {"nats", "tls", "ws", "wss"} or not url.hostname:
            raise ValueError("not a NATS address like nats://127.0.0.1:4222")
        _ = url.port
    return text


def _endpoint(text: str) -> str:
    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("not an address like 127.0.0.1:32769 or http://host:port")
    _ = url.port
    return text


def _masked(text: str) -> str:
    """Text without the credentials of the addresses in it."""
    return re.sub(r"(^|://|,)[^@/,]*@", r"\1****@", text)


def _hub(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("not an address like https://huggingface.co")
    _ = url.port
    return text.rstrip("/")


def _hub_token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        # It would not go into a header, and the error of who tries shows it.
        raise ValueError("not a token: it has spaces, line ends or other characters that no token has")
    return token


def _setting(
    env: str,
    default: Any,
    parse: Callable[[str], Any],
    help: str,
    *,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    metadata = {"env": env, "parse": parse, "help": help, "shown": shown, "secret": secret}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one process. Units are in the names: ``_s`` seconds, ``_bytes`` bytes."""

    home: Path = _setting(
        "LLMLB_HOME",
        lambda: Path.home() / ".llmlb",
        lambda text: Path(text).expanduser(),
        "models, bus store, database, logs, node id",
        shown="~/.llmlb",
    )
    bus_url: str = _setting("LLMLB_BUS_URL", "nats://127.0.0.1:4222", _bus_url, "the bus (several, comma-separated)")
    embedded_bus: bool = _setting(
        "LLMLB_EMBEDDED_BUS", True, parse_bool, "start a bus where a loopback LLMLB_BUS_URL answers nothing"
    )
    bus_replicas: int = _setting("LLMLB_BUS_REPLICAS", 1, _positive, "replicas of streams and buckets on a bus cluster")
    host: str | None = _setting(
        "LLMLB_HOST",
        None,
        _endpoint,
        "gateway the command line talks to",
        shown="127.0.0.1:32769; router commands 127.0.0.1:32768",
    )
    router_port: int = _setting("LLMLB_ROUTER_PORT", ROUTER_PORT, parse_port, "port of the router's gateway")
    router_bind: str = _setting("LLMLB_ROUTER_BIND_ADDRESS", "0.0.0.0", str, "bind address of the router's gateway")
    router_workers: int = _setting("LLMLB_ROUTER_WORKERS", 1, _positive, "gateway processes of a router, on one port")
    node_port: int = _setting("XLLM_PORT", NODE_PORT, parse_port, "port of the node's gateway")
    node_bind: str = _setting("XLLM_BIND_ADDRESS", "0.0.0.0", str, "bind address of the node's gateway")
    auth: str = _setting(
        "LLMLB_AUTH", "on", _auth, "`off` serves every peer without credentials: for trusted networks only"
    )
    trusted_proxies: str = _setting(
        "LLMLB_TRUSTED_PROXIES",
        "",
        _networks,
        "networks of reverse proxies whose `X-Forwarded-For` is believed, such as `10.0.0.5/32,fd00::/8`",
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "LLMLB_API_KEY",
            "parse": _api_key,
            "help": "key the command line shows to the gateway; from `llmlb router key create`",
            "shown": None,
            "secret": True,
        },
    )
    debug: bool = _setting("LLMLB_DEBUG", False, parse_bool, "debug logs, and tracebacks in the command line")
    keep_alive_s: float = _setting(
        "LLMLB_KEEP_ALIVE",
        300.0,
        parse_duration,
        "idle time before a model is unloaded (-1 never, 0 at once)",
        shown="5m",
    )
    num_parallel: int | None = _setting(
        "LLMLB_NUM_PARALLEL", None, _positive, "slots of a loaded model", shown="automatic"
    )
    context_length: int | None = _setting(
        "LLMLB_CONTEXT_LENGTH", None, _positive, "context of one slot, in tokens", shown="automatic"
    )
    num_threads: int | None = _setting(
        "LLMLB_NUM_THREADS", None, _positive, "CPU threads of one engine worker", shown="every core"
    )
    memory_limit_bytes: int | None = _setting(
        "LLMLB_MEMORY_LIMIT", None, parse_size, "memory that loaded models may take together", shown="what is free"
    )
    load_timeout_s: float = _setting(
        "LLMLB_LOAD_TIMEOUT", 300.0, parse_duration, "time a model may take to load", shown="5m"
    )
    stall_timeout_s: float = _setting(
        "LLMLB_STALL_TIMEOUT", 30.0, parse_duration, "silence after which a running request counts as failed"
    )
    queue_max: int = _setting("LLMLB_QUEUE_MAX", 100, _positive, "requests that may wait for a slot in one gateway")
    queue_timeout_s: float = _setting(
        "LLMLB_QUEUE_TIMEOUT", 60.0, parse_duration, "how long a request may wait for a slot"
    )
    max_body_bytes: int = _setting(
        "LLMLB_MAX_BODY_BYTES", 7 * 1024 * 1024, parse_size, "largest HTTP request body", shown="7MiB"
    )
    image_urls: str = _setting(
        "LLMLB_IMAGE_URLS",
        "off",
        _image_urls,
        "images behind http URLs in requests: `off`, fetched from `public` addresses, or from `any`",
    )
    hf_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "HF_TOKEN",
            "parse": _hub_token,
            "help": "token for gated and private models of the hub",
            "shown": None,
            "secret": True,
        },
    )
    hf_endpoint: str | None = _setting(
        "HF_ENDPOINT", None, _hub, "the hub that models are pulled from", shown="https://huggingface.co"
    )
    pull_parallel: int = _setting("LLMLB_PULL_PARALLEL", 2, _positive, "models a node pulls at the same time")
    ollama_models: Path = _setting(
        "OLLAMA_MODELS",
        lambda: Path.home() / ".ollama" / "models",
        lambda text: Path(text).expanduser(),
        "Ollama's store, read and never written",
        shown="~/.ollama/models",
    )
    node_labels: str = _setting(
        "LLMLB_NODE_LABELS", "", _labels, "labels of the node, comma-separated, such as `gpu,zone=b`"
    )
    join_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "LLMLB_JOIN_TOKEN",
            "parse": _join_token,
            "help": "lets a node of another machine in without an admin; from `llmlb router join-token`",
            "shown": None,
            "secret": True,
        },
    )
    drain_timeout_s: float = _setting(
        "LLMLB_DRAIN_TIMEOUT",
        20.0,
        parse_duration,
        "how long running requests may finish when a process is told to stop",
    )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from the environment (this process's unless given), with command line options on top.

        An override of None means "not given". Raises ConfigError naming the variable and what is wrong with it.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for item in fields(cls):
            env = item.metadata["env"]
            text = source.get(env, "")
            if text == "":
                continue
            try:
                values[item.name] = item.metadata["parse"](text)
            except ValueError as error:
                shown = "****" if item.metadata["secret"] else repr(text)
                raise ConfigError(f"{env}={shown} is wrong: {error}") from error
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values)

    @property
    def bus_is_loopback(self) -> bool:
        """True when the bus address is a single one on this machine, so that a bus may be started there."""
        if "," in self.bus_url:
            return False
        host = urlsplit(self.bus_url).hostname or ""
        return host == "localhost" or host == "::1" or host.startswith("127.")

    @property
    def bus_url_shown(self) -> str:
        """The bus address for logs and people: without the password it may hold."""
        return _masked(self.bus_url)

    def to_environ(self) -> dict[str, str]:
        """The environment that makes :meth:`load` of a child process return these settings (None is left out)."""
        out: dict[str, str] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                out[item.metadata["env"]] = str(value).lower() if isinstance(value, bool) else str(value)
        return out

    def describe(self) -> list[tuple[str, str, str, str]]:
        """(field, environment variable, value, help) of each setting; secrets are masked."""
        rows = []
        for item in fields(self):
            value = getattr(self, item.name)
            shown = "" if value is None else "****" if item.metadata["secret"] else _masked(str(value))
            rows.append((item.name, item.metadata["env"], shown, item.metadata["help"]))
        return rows


def setting_help() -> list[tuple[str, str, str]]:
    """(environment variable, default as shown to people, help) of each setting, for the documentation."""
    rows = []
    for item in fields(Settings):
        shown = item.metadata["shown"]
        if shown is None:
            shown = "" if item.default is None else str(item.default)
        rows.append((item.metadata["env"], shown, item.metadata["help"]))
    return rows
