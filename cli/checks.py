"""What ``llmlb doctor`` looks at. Each check answers with verdicts, waits for nothing longer than its timeout, and
changes nothing: the one file that it writes, into the home, it takes away again.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import llmlb
from llmlb.bus.errors import AccessError, ConfigError, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import Unreachable
from llmlb.cli.render import gpu_name, printable, size
from llmlb.cli.versions import mismatch

Level = Literal["ok", "warn", "fail"]

ANSWER_S = 3.0
PROBE_S = 30.0
LOW_BYTES = 10_000_000_000
"""Free disk below which a usual model does not fit."""
NO_BYTES = 500_000_000
HUB = "https://huggingface.co"
_PROBE = (
    "import json, llama_cpp as l; l.llama_backend_init(); "
    "print(json.dumps([l.llama_print_system_info().decode(), bool(l.llama_supports_gpu_offload())]))"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line: how it is, what was looked at, what was found, and what to do where something is to be done."""

    level: Level
    check: str
    found: str
    todo: str | None = None


def versions(settings: Settings) -> list[Verdict]:
    """llmlb, Python and the libraries that do the work."""
    parts = [f"llmlb {llmlb.__version__}", f"Python {platform.python_version()}"]
    parts += [f"llama-cpp-python {_installed('llama-cpp-python')}", f"nats-server {_nats_server()}"]
    return [Verdict("ok", "versions", ", ".join(parts))]


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _nats_server() -> str:
    from llmlb.bus.server import find_binary

    try:
        done = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, timeout=ANSWER_S)
        return done.stdout.strip().removeprefix("nats-server: v") or "broken"
    except (ConfigError, OSError, subprocess.TimeoutExpired):
        return "missing"


def home(settings: Settings) -> list[Verdict]:
    """LLMLB_HOME can be written, and has room."""
    folder = settings.home
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if not there.is_dir():
            raise NotADirectoryError(20, "not a folder")
        with tempfile.NamedTemporaryFile(dir=there, prefix=".llmlb-doctor-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        why = f"{folder} can't be written: {error.strerror or error}"
        return [Verdict("fail", "home", why, "set LLMLB_HOME to a folder of yours, or mend its permissions")]
    new = "" if there == folder else " (it will be made)"
    return [Verdict("ok", "home", f"{folder} is writable{new}"), _disk(there)]


def _disk(folder: Path) -> Verdict:
    stat = os.statvfs(folder)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    found = f"{size(free)} of {size(total)} free at {folder}"
    if free < NO_BYTES:
        return Verdict("fail", "disk", found, "make room: the bus and the request history need some, too")
    if free < LOW_BYTES:
        return Verdict("warn", "disk", found, "remove models with: llmlb node rm, or set LLMLB_HOME to a larger disk")
    return Verdict("ok", "disk", found)


def ports(settings: Settings) -> list[Verdict]:
    """Those of serve are free, or llmlb is on them already."""
    return [
        _port("router", settings.router_bind, settings.router_port, "--port or LLMLB_ROUTER_PORT"),
        _port("node", settings.node_bind, settings.node_port, "--node-port (serve), --port (node serve) or XLLM_PORT"),
    ]


def _port(role: str, bind: str, port: int, choose: str) -> Verdict:
    check = f"{role} port"
    trouble = _trouble(bind, port)
    if trouble is None:
        return Verdict("ok", check, f"{port} is free")
    if trouble.errno != errno.EADDRINUSE:
        why = f"can't listen on {bind} port {port}: {os.strerror(trouble.errno or 0).lower()}"
        return Verdict("fail", check, why, f"choose another port with {choose}, or another address with --host")
    here = "127.0.0.1" if bind in ("0.0.0.0", "", "::") else f"[{bind}]" if ":" in bind else bind
    health = _health(f"http://{here}:{port}")
    if health.get("role") == role:
        return Verdict("ok", check, f"{port} is held by llmlb {health.get('version')}, a running {role}")
    who = f"a {health['role']} of llmlb" if health.get("role") else "another program"
    return Verdict("fail", check, f"{port} is held by {who}", f"end it, or choose another port with {choose}")


def _trouble(bind: str, port: int) -> OSError | None:
    """What keeps a server from listening there."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((bind, port))
        except OSError as error:
            return error
        return None


def _health(base: str) -> dict[str, Any]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{base}/health", timeout=2) as answer:
            body = json.loads(answer.read(65536))
            return body if isinstance(body, dict) else {}
    except (OSError, ValueError, HTTPException):
        return {}


def bus(settings: Settings) -> list[Verdict]:
    """Each address of LLMLB_BUS_URL: a NATS server with JetStream."""
    return [_bus_server(settings, address) for address in settings.bus_url.split(",")]


def _bus_server(settings: Settings, address: str) -> Verdict:
    url = urlsplit(address.strip())
    where = f"{url.hostname}:{url.port or 4222}"
    try:
        info = _greeting(url.hostname or "", url.port or 4222)
    except OSError as error:
        if settings.embedded_bus and settings.bus_is_loopback:
            return Verdict("ok", "bus", f"none at {where} yet; serve starts one there")
        why = str(error.strerror or error).lower()
        return Verdict("fail", "bus", f"{where} does not answer: {why}", "start it, or set LLMLB_BUS_URL")
    if info is None:
        if url.scheme in ("ws", "wss"):
            return Verdict("ok", "bus", f"{where} takes connections (over {url.scheme} nothing more is looked at)")
        return Verdict("fail", "bus", f"what answers at {where} is no NATS server", "set LLMLB_BUS_URL to the bus")
    found = f"nats-server {info.get('version')} at {where}"
    if not info.get("jetstream"):
        return Verdict("fail", "bus", f"{found} has no JetStream", "start it with -js, or jetstream {} in its settings")
    if int(info.get("max_payload", 0)) < 8 * 1024 * 1024:
        todo = "set max_payload to 8MB there: long prompts and images need it"
        return Verdict("warn", "bus", f"{found} takes messages of {size(int(info['max_payload']))} only", todo)
    return Verdict("ok", "bus", f"{found} with JetStream")


def _greeting(host: str, port: int) -> dict[str, Any] | None:
    """What a NATS server says first. Source: NATS client protocol, ``INFO {json}``. Raises OSError."""
    with socket.create_connection((host, port), timeout=ANSWER_S) as sock, sock.makefile("rb") as greeting:
        try:
            line = greeting.readline(65536)
            found = json.loads(line[5:]) if line.startswith(b"INFO ") else None
        except (TimeoutError, ValueError):
            return None
    return found if isinstance(found, dict) else None


def servers(settings: Settings) -> list[Verdict]:
    """The gateways that commands talk to: there, of this version, and they know who we are."""
    roles = ("node", "router") if settings.host is None else ("router",)
    return [_server(settings, role) for role in roles]


def _server(settings: Settings, role: str) -> Verdict:
    check = f"{role} gateway" if settings.host is None else "LLMLB_HOST"
    gateway = GatewayClient(settings, role)
    gateway.hurry(ANSWER_S)
    try:
        health = gateway.get("/health", has="version", timeout_s=ANSWER_S)
        gateway.get("/v0/models", has="models", timeout_s=ANSWER_S)
    except Unreachable as error:
        if settings.host is None:
            return Verdict("ok", check, f"none answers at {gateway.address}; llmlb {role} serve starts one")
        return Verdict("fail", check, error.message.partition(". ")[0], "mend LLMLB_HOST, or start what it names")
    except AccessError as error:
        todo = "set LLMLB_API_KEY to a key from: llmlb router key create"
        return Verdict("warn", check, f"{gateway.address} does not let us in: {error.message}", todo)
    except LlmlbError as error:
        return Verdict("fail", check, error.message, "see its log, and LLMLB_HOST")
    finally:
        gateway.close()
    found = f"llmlb {health['version']}, a {health.get('role')}, answers at {gateway.address}"
    trouble = mismatch(str(health["version"]), gateway.address)
    return Verdict("warn" if trouble else "ok", check, found, trouble)


def gpus(settings: Settings) -> list[Verdict]:
    """What NVML says."""
    from llmlb.node.hardware import Hardware

    hardware = Hardware()
    try:
        found = hardware.read().gpus
    finally:
        hardware.close()
    if not found and _driver():
        todo = "see nvidia-smi: driver and library may differ in version, or a container may lack --gpus all"
        return [Verdict("warn", "GPU", "an NVIDIA driver is loaded, but NVML shows no GPU", todo)]
    if not found:
        return [Verdict("ok", "GPU", "none: models run on the CPU")]
    free = [size(gpu.memory_total_bytes - gpu.memory_used_bytes) for gpu in found]
    names = [
        f"{gpu_name(gpu.name)} {left} of {size(gpu.memory_total_bytes)} free"
        for gpu, left in zip(found, free, strict=True)
    ]
    return [Verdict("ok", "GPU", printable(", ".join(names)))]


def engine(settings: Settings) -> list[Verdict]:
    """llama.cpp runs on this CPU; in a process of its own, because one that does not is killed by the system."""
    rebuild = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-binary :all: --no-deps llama-cpp-python"
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return [Verdict("warn", "llama.cpp", f"did not begin within {PROBE_S:.0f} s", "try again on an idle machine")]
    if done.returncode == -signal.SIGILL:
        return [Verdict("fail", "llama.cpp", "it was built for another CPU (SIGILL)", f"build it anew: {rebuild}")]
    try:
        info, offload = json.loads(done.stdout.strip().split("\n")[-1])
    except ValueError:
        last = (done.stderr.strip().split("\n") or [""])[-1]
        return [Verdict("fail", "llama.cpp", printable(f"it can't be loaded: {last}"), "install llmlb anew")]
    build = "for GPUs" if offload else "for the CPU"
    if "AMX_INT8 = 1" in info and _virtual():
        return [
            Verdict(
                "warn",
                "llama.cpp",
                "built with AMX, on a virtual machine: some report it but do not allow it",
                f"if workers die with SIGILL, build it anew: {rebuild}",
            )
        ]
    if not offload and _driver():
        todo = "to use the GPU build it with CMAKE_ARGS=-DGGML_CUDA=on (README)"
        return [Verdict("warn", "llama.cpp", "built for the CPU, on a machine with an NVIDIA GPU", todo)]
    return [Verdict("ok", "llama.cpp", f"{_installed('llama-cpp-python')} loads, built {build}")]


def _driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _virtual() -> bool:
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def hub(settings: Settings) -> list[Verdict]:
    """Something answers at the hub's address. A machine without a way there still serves what it has."""
    address = settings.hf_endpoint or HUB
    shown = urlsplit(address).netloc.rpartition("@")[2]
    token = "with HF_TOKEN" if settings.hf_token else "without HF_TOKEN: gated models can't be pulled"
    try:
        request = urllib.request.Request(f"{address}/api/models?limit=1", headers={"User-Agent": "llmlb"})
        with urllib.request.urlopen(request, timeout=ANSWER_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return [Verdict("ok", "hub", f"{shown} answers, {token}")]
        return [
            Verdict("warn", "hub", f"{shown} answers with status {error.code}", "pulls wait until it is well again")
        ]
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = "no valid certificate" if isinstance(reason, ssl.SSLError) else str(reason or type(error).__name__)
        todo = "models can't be pulled: check network, proxy (HTTPS_PROXY) and HF_ENDPOINT"
        return [Verdict("warn", "hub", printable(f"{shown} can't be reached: {why}"), todo)]
    return [Verdict("ok", "hub", f"{shown} answers, {token}")]


ALL = (versions, home, ports, bus, servers, gpus, engine, hub)
"""In the order of the output."""
