"""Every setting of every process: read once at start, frozen, passed down.

The only module that reads the environment. Bad values are errors (:class:`ConfigError`), never silent defaults. Plain
dataclasses, not pydantic: the command line loads this at start-up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmlb.bus import setting_values as values
from llmlb.bus.errors import ConfigError
from llmlb.bus.setting_values import parse_bool, parse_duration, parse_log_format, parse_port, parse_size

__all__ = [
    "NODE_PORT",
    "ROUTER_PORT",
    "Settings",
    "parse_duration",
    "parse_log_format",
    "parse_size",
    "plain_terminal",
    "setting_help",
]

ROUTER_PORT = 32768
NODE_PORT = 32769


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
    bus_url: str = _setting(
        "LLMLB_BUS_URL", "nats://127.0.0.1:4222", values.bus_url, "the bus (several, comma-separated)"
    )
    embedded_bus: bool = _setting(
        "LLMLB_EMBEDDED_BUS", True, parse_bool, "start a bus where a loopback LLMLB_BUS_URL answers nothing"
    )
    bus_replicas: int = _setting(
        "LLMLB_BUS_REPLICAS", 1, values.positive, "replicas of streams and buckets on a bus cluster"
    )
    host: str | None = _setting(
        "LLMLB_HOST",
        None,
        values.endpoint,
        "gateway the command line talks to",
        shown="127.0.0.1:32769; router commands 127.0.0.1:32768",
    )
    router_port: int = _setting("LLMLB_ROUTER_PORT", ROUTER_PORT, parse_port, "port of the router's gateway")
    router_bind: str = _setting("LLMLB_ROUTER_BIND_ADDRESS", "0.0.0.0", str, "bind address of the router's gateway")
    router_workers: int = _setting(
        "LLMLB_ROUTER_WORKERS", 1, values.positive, "gateway processes of a router, on one port"
    )
    node_port: int = _setting("XLLM_PORT", NODE_PORT, parse_port, "port of the node's gateway")
    node_bind: str = _setting("XLLM_BIND_ADDRESS", "0.0.0.0", str, "bind address of the node's gateway")
    auth: str = _setting(
        "LLMLB_AUTH", "on", values.on_or_off, "`off` serves every peer without credentials: for trusted networks only"
    )
    trusted_proxies: str = _setting(
        "LLMLB_TRUSTED_PROXIES",
        "",
        values.networks,
        "networks of reverse proxies whose `X-Forwarded-For` is believed, such as `10.0.0.5/32,fd00::/8`",
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "LLMLB_API_KEY",
            "parse": values.api_key,
            "help": "key the command line shows to the gateway; from `llmlb router key create`",
            "shown": None,
            "secret": True,
        },
    )
    debug: bool = _setting("LLMLB_DEBUG", False, parse_bool, "debug logs, and tracebacks in the command line")
    log_format: str = _setting(
        "LLMLB_LOG_FORMAT", "text", parse_log_format, "how serving processes log: `text`, or `json`, one object a line"
    )
    no_history: bool = _setting(
        "LLMLB_NOHISTORY", False, parse_bool, "keep no history of what is typed in `llmlb node run`"
    )
    keep_alive_s: float = _setting(
        "LLMLB_KEEP_ALIVE",
        300.0,
        parse_duration,
        "idle time before a model is unloaded (-1 never, 0 at once)",
        shown="5m",
    )
    num_parallel: int | None = _setting(
        "LLMLB_NUM_PARALLEL", None, values.positive, "slots of a loaded model", shown="automatic"
    )
    context_length: int | None = _setting(
        "LLMLB_CONTEXT_LENGTH", None, values.positive, "context of one slot, in tokens", shown="automatic"
    )
    num_threads: int | None = _setting(
        "LLMLB_NUM_THREADS", None, values.positive, "CPU threads of one engine worker", shown="every core"
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
    queue_max: int = _setting(
        "LLMLB_QUEUE_MAX", 100, values.positive, "requests that may wait for a slot in one gateway"
    )
    queue_timeout_s: float = _setting(
        "LLMLB_QUEUE_TIMEOUT", 60.0, parse_duration, "how long a request may wait for a slot"
    )
    max_body_bytes: int = _setting(
        "LLMLB_MAX_BODY", 20_000_000, values.body_size, "largest HTTP request body, up to 100MB", shown="20MB"
    )
    body_budget_bytes: int | None = _setting(
        "LLMLB_BODY_BUDGET",
        None,
        parse_size,
        "what the HTTP request bodies of more than 1 MB that a gateway is at work on may have together",
        shown="1GB, or an eighth of the memory",
    )
    client_timeout_s: float = _setting(
        "LLMLB_CLIENT_TIMEOUT",
        30.0,
        values.seconds,
        "how long an HTTP client may take for its headers, pause within a body, or not read its answer",
        shown="30s",
    )
    idle_timeout_s: float = _setting(
        "LLMLB_IDLE_TIMEOUT",
        75.0,
        values.seconds,
        "how long an HTTP connection may stay without a request",
        shown="75s",
    )
    cors_origins: str = _setting(
        "LLMLB_CORS_ORIGINS",
        "",
        values.origins,
        "web pages of other origins that may use the gateway, such as `https://chat.example.com`; `*`: all, without "
        "cookies",
        shown="none",
    )
    image_urls: str = _setting(
        "LLMLB_IMAGE_URLS",
        "off",
        values.image_urls,
        "images behind http URLs in requests: `off`, fetched from `public` addresses, or from `any`",
    )
    hf_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "HF_TOKEN",
            "parse": values.hub_token,
            "help": "token for gated and private models of the hub",
            "shown": None,
            "secret": True,
        },
    )
    hf_endpoint: str | None = _setting(
        "HF_ENDPOINT", None, values.hub_address, "the hub that models are pulled from", shown="https://huggingface.co"
    )
    supported_models: Path | None = _setting(
        "LLMLB_SUPPORTED_MODELS",
        None,
        lambda text: Path(text).expanduser(),
        "JSON file with models that are added to the list of supported ones, or replace it",
    )
    pull_parallel: int = _setting("LLMLB_PULL_PARALLEL", 2, values.positive, "models a node pulls at the same time")
    ollama_models: Path = _setting(
        "OLLAMA_MODELS",
        lambda: Path.home() / ".ollama" / "models",
        lambda text: Path(text).expanduser(),
        "Ollama's store, read and never written",
        shown="~/.ollama/models",
    )
    node_labels: str = _setting(
        "LLMLB_NODE_LABELS", "", values.node_labels, "labels of the node, comma-separated, such as `gpu,zone=b`"
    )
    join_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "LLMLB_JOIN_TOKEN",
            "parse": values.join_token,
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
        return values.masked(self.bus_url)

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
            shown = "" if value is None else "****" if item.metadata["secret"] else values.masked(str(value))
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


def child_environ(**defaults: str) -> dict[str, str]:
    """This process's environment for a child, with these variables where the operator has set none."""
    return {**defaults, **os.environ}


def plain_terminal(environ: Mapping[str, str] | None = None) -> bool:
    """True where a terminal is to get text without escape sequences.

    Source: no-color.org (NO_COLOR is set and not empty), and terminfo's name for a terminal that can do nothing.
    """
    source = os.environ if environ is None else environ
    return bool(source.get("NO_COLOR")) or source.get("TERM", "dumb") in ("dumb", "")
